// SPDX-License-Identifier: Apache-2.0

// Package order is what the driver asks of a lab's holder, and what the holder answers: one request per connection of
// the lab's socket, carried by package channel. Closing the connection withdraws the request. It is no public interface:
// driver and holder are built together, and a holder refuses a client of another version.
package order

import (
	"encoding/json"

	"github.com/ambientlab/ambientlab/topologies"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// Version of the messages.
const Version = 3

// Request is the first message of a connection. Exactly one field besides Version is set.
type Request struct {
	Version int

	Up      *Up         `json:",omitempty"`
	Down    *struct{}   `json:",omitempty"`
	Info    *struct{}   `json:",omitempty"`
	Pods    *struct{}   `json:",omitempty"`
	Apply   *Objects    `json:",omitempty"`
	Delete  *Objects    `json:",omitempty"`
	Exec    *Exec       `json:",omitempty"` // with three descriptors: the streams; none if a terminal is wanted, which then comes with the first reply
	Daemon  *Daemon     `json:",omitempty"`
	Dial    *Dial       `json:",omitempty"` // answered with one descriptor: the connection
	Link    *Link       `json:",omitempty"`
	Capture *lab.Target `json:",omitempty"` // with one descriptor: where the packets go
	Inspect *lab.Target `json:",omitempty"`
}

// Up realises a topology. Objects are those of its one cluster, rendered; the Spec comes without raw objects.
type Up struct {
	Spec      *topologies.Spec
	Objects   Objects
	DaemonEnv map[string][]string
}

// Objects are Kubernetes objects as JSON, each with apiVersion and kind.
type Objects []json.RawMessage

// Exec runs a command in a pod.
type Exec struct {
	Pod  lab.PodRef
	Argv []string
	TTY  *lab.WindowSize `json:",omitempty"`
}

// Daemon does something with a daemon.
type Daemon struct {
	Node, Name string
	Action     Action
	Signal     int      // with ActionSignal
	Env        []string `json:",omitempty"` // with ActionStart and ActionReplace: overrides, for this run
}

// Action is what to do with a daemon.
type Action string

// Actions.
const (
	ActionSignal  Action = "signal"
	ActionStop    Action = "stop"
	ActionStart   Action = "start"
	ActionReplace Action = "replace"
	ActionReady   Action = "ready"
	ActionStatus  Action = "status"
)

// Dial connects to a port on a daemon's loopback.
type Dial struct {
	Node, Name string
	Port       uint16
}

// Link does one thing with a link.
type Link struct {
	A, B    string
	Cut     bool             `json:",omitempty"`
	Restore bool             `json:",omitempty"`
	Impair  []lab.Impairment `json:",omitempty"` // there and back
	Traffic bool             `json:",omitempty"`
}

// Note is a later message of the client.
type Note struct {
	Signal int  `json:",omitempty"` // for the process of an Exec
	Stop   bool `json:",omitempty"` // ends a Capture
}

// Reply is a message of the holder. The last one has Done or Error set.
type Reply struct {
	Progress string `json:",omitempty"` // what is going on
	Started  bool   `json:",omitempty"` // an Exec's process or a Capture runs
	Done     bool   `json:",omitempty"`
	Error    string `json:",omitempty"`

	Errno      int              `json:",omitempty"` // with Error: why an Exec's command could not be started
	Exit       int              `json:",omitempty"`
	Pods       []lab.PodInfo    `json:",omitempty"`
	Status     *lab.Status      `json:",omitempty"`
	Inspection *lab.Inspection  `json:",omitempty"`
	Drops      int              `json:",omitempty"`
	Traffic    *lab.LinkTraffic `json:",omitempty"`
	Info       *Info            `json:",omitempty"`
}

// Info is what the holder knows of its lab.
type Info struct {
	Spec         *topologies.Spec // nil before Up; without raw objects
	Capabilities lab.Capabilities
}

// Hello is what a holder says on its start-up pipe: that it listens, or why it cannot.
type Hello struct {
	Error string `json:",omitempty"`
	Taken bool   `json:",omitempty"` // the lab stands already
}
