// SPDX-License-Identifier: Apache-2.0

package pause

import "github.com/ambientlab/ambientlab/topologies/driver/netns/child"

// Setup is what an init prepares before it starts anything.
type Setup struct {
	Hostname string
	Sysctls  []Sysctl
	Reaper   bool // not PID 1 of a namespace: adopt orphans nevertheless
	Root     *Root
	Binds    []Bind // with Root, inside the new root
	Files    []File // the same
}

// Sysctl is a file below /proc/sys and what to write into it. One that the kernel has not got is passed over.
type Sysctl struct{ Name, Value string }

// Root is the host's file tree, read-only, with private /proc, /dev, /tmp and /run.
type Root struct {
	Staging string   // an empty directory to build it on
	Hide    []string // directories of the host that appear empty
}

// Bind shows Source, as it is before the root changes, at Target. A Target that does not exist is made where the root is
// private, and elsewhere by covering its parent directory.
type Bind struct {
	Source, Target string
	ReadOnly       bool
	Private        bool // a file system of this node or pod alone: files may be made in it
}

// File is a file that the init writes: in place where the root is private, elsewhere by covering what is there.
type File struct {
	Path    string
	Content string
	Mode    uint32 // 0 means 0644
}

// Start is a process to start. Its standard streams travel with the order as three descriptors, unless it gets a terminal.
type Start struct {
	Argv     []string // Argv[0] is searched for in PATH of Env
	Env      []string
	Dir      string
	Bounds   *child.Bounds
	Terminal *Terminal `json:",omitempty"` // it leads a session that a new terminal controls
}

// Terminal is a terminal's size at first; zeros leave the kernel's.
type Terminal struct{ Rows, Cols uint16 }

// order is a message to the init. One of its fields besides ID is set.
type order struct {
	ID     uint64  // of the reply; with Signal and Start, the process's handle
	Setup  *Setup  `json:",omitempty"`
	Files  []File  `json:",omitempty"`
	Start  *Start  `json:",omitempty"`
	Signal *signal `json:",omitempty"`
}

type signal struct {
	Process uint64
	Number  int
	Group   bool // the process and what it started, as far as that stayed in its group
}

// reply is a message from the init: the answer to an order, or the end of a process.
type reply struct {
	ID    uint64
	Error string `json:",omitempty"`
	Errno int    `json:",omitempty"` // what the kernel said, if Error comes from it
	PID   int    `json:",omitempty"` // in the init's PID namespace; the terminal, if one was asked for, and a descriptor of the process come along
	Exit  *int   `json:",omitempty"`
}
