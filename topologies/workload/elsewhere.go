// SPDX-License-Identifier: Apache-2.0

package workload

// ElsewhereCommand is the workload binary's command that runs Elsewhere: its arguments are the path and the command.
const ElsewhereCommand = "elsewhere"

// NewNamespace is the path of a namespace that does not exist yet.
const NewNamespace = "new"
