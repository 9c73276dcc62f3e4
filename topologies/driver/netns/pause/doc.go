// SPDX-License-Identifier: Apache-2.0

// Package pause is the init process of a node or a pod of a lab, and the holder's handle on it. The init prepares the
// namespaces that it was started in (sysctls, a root of its own, files), starts every later process there when the holder
// orders it, and reaps. It does not know what a pod is for: networks and addresses are the holder's work.
// Sources: pid_namespaces(7), mount_namespaces(7), mount_setattr(2), pivot_root(2).
package pause
