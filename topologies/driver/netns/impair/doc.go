// SPDX-License-Identifier: Apache-2.0

// Package impair delays, loses, duplicates and reorders the packets between two network devices, one direction at a time. It takes
// them out of the kernel's path by a packet socket and a netdev rule, and puts them back by another packet socket, because
// not every kernel has netem, and netem cannot tell one neighbour's packets from another's without a tree of queues. What becomes of the nth packet
// follows from a seed. It does not know what is on either side: drivers say which devices.
// Sources: packet(7), virtio_net.h (struct virtio_net_hdr), tc-netem(8) for the meaning of the shares.
package impair
