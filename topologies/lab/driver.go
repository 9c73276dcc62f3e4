// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"time"

	"k8s.io/apimachinery/pkg/runtime"

	"github.com/ambientlab/ambientlab/topologies"
)

// Driver realises one topology. Its methods may be called concurrently after Up has returned; each blocks until the
// effect is there or ctx ends. An error names the object, the cause and, where one can act, the cure.
type Driver interface {
	// Up brings the whole topology up and returns once every daemon is ready, every pod runs, and every pod that its
	// labels enrol is enrolled. On error nothing is left. A driver is good for one Up.
	Up(ctx context.Context, spec *topologies.Spec, o UpOptions) error

	// Down removes everything that Up and later calls made. Down after Down, or without Up, succeeds.
	Down(ctx context.Context) error

	// Apply creates or replaces objects, like `kubectl apply`: a Pod is started on its spec.nodeName (or on the first
	// node), a Service without clusterIPs gets some. It returns once the objects are stored, not once they took effect:
	// wait with Pods, or with what the daemons say. A Pod that exists is not restarted: only its metadata changes.
	Apply(ctx context.Context, objs ...runtime.Object) error

	// Delete removes objects by kind, namespace and name. A Pod is stopped and its CNI DEL has run when Delete returns.
	// Deleting what is not there succeeds.
	Delete(ctx context.Context, objs ...runtime.Object) error

	// Get fills obj, of which kind, namespace and name are given, with the object as it is stored, and with what the
	// parts of the cluster have said of it in its status and annotations. One that is not there is ErrNotFound. The Secret
	// istio-system/istio-ca-secret has the mesh's authority, wherever the control plane keeps that.
	Get(ctx context.Context, obj runtime.Object) error

	// Exec runs argv in a pod, as a process of the pod with the pod's own rights; argv[0] is looked up in the pod's PATH,
	// where the workload binary is "workload". exit is the process's exit code, 128+n if signal n ended it; err is set
	// only when it could not be run: it is a *StartError if the command is not there, or is no program. When ctx ends, the
	// process is killed.
	Exec(ctx context.Context, pod PodRef, argv []string, stdio Stdio) (exit int, err error)

	// Daemon is a handle on a daemon: DaemonZtunnel and DaemonCNIAgent with a node, DaemonControl with node "".
	// The handle is made without I/O; an unknown daemon's methods return an error.
	Daemon(node, name string) Daemon

	// Link is a handle on the underlay between two nodes, or a node and an external host; or on a pod's cable, if a is a node and
	// b a pod on it, as "namespace/name"; or, with CapAPIServer, on a node's way to DaemonAPIServer, as its
	// pods have it, those of its own network too; kubelet has another.
	Link(a, b string) Link

	// Capture records packets at t and returns once recording has begun, so that no later packet is missed.
	Capture(ctx context.Context, t Target) (Capture, error)

	// Inspect reads the network state of a pod or a node for evidence. It changes nothing.
	Inspect(ctx context.Context, t Target) (Inspection, error)

	// Pods lists every pod, those of istio-system too, sorted by namespace and name.
	Pods(ctx context.Context) ([]PodInfo, error)

	// Capabilities says what this driver can do on this host. Constant after Up.
	Capabilities() Capabilities
}

// ErrNotFound is returned for an object that does not exist.
var ErrNotFound = errors.New("not found")

// ErrOccupied is what Up returns if another lab stands where this one would, and there is place for one only.
var ErrOccupied = errors.New("another lab stands there")

// ErrUnsupported is what Up returns if this driver, or this host, cannot realise something that the topology asks for.
var ErrUnsupported = errors.New("not to be had here")

// AnnotationIPs on a pod names the addresses that it is to have, separated by commas: free ones of its node. A driver that
// cannot choose addresses ignores it.
const AnnotationIPs = "ambientlab.dev/ips"

// Names of daemons.
const (
	DaemonZtunnel  = "ztunnel"
	DaemonCNIAgent = "cni-agent"
	DaemonControl  = "control"

	// DaemonAPIServer is not the mesh's but the cluster's, of node "": see CapAPIServer. While it is stopped, so are Kubernetes'
	// own controllers and its scheduler, for which there is nothing to do; Driver.Exec needs UpOptions.ExecByNode, and every
	// other method that asks the cluster fails. It has no admin ports and no log here, and cannot be replaced.
	DaemonAPIServer = "apiserver"
)

// UpOptions are what a caller may choose about a lab besides its topology. The zero value is good.
type UpOptions struct {
	Dir string // the lab's directory; "" lets the driver choose by the topology's name. Down removes it, but not its parent
	Bin string // where the project's binaries are; "" lets the driver look in $AMBIENTLAB_BIN and beside the executable
	Log *slog.Logger

	// Unique lets the driver, where it chooses Dir, go on to another name while a lab of that name stands.
	Unique bool

	// DaemonEnv adds environment variables, "NAME=value", to daemons by name: this is how a scenario shortens timers.
	DaemonEnv map[string][]string

	// ExecByNode has nodes start the commands that are run in workloads' pods, so that these go on when the API server goes, by
	// which they would come and go otherwise. It is slower, and of no account where CapAPIServer is missing.
	ExecByNode bool
}

// Stdio are the streams of a process; nil is the null device. A driver passes an *os.File on as it is, and copies
// anything else.
type Stdio struct {
	In  io.Reader
	Out io.Writer
	Err io.Writer

	// TTY asks for a terminal: In and Out are its two ends, Err is unused.
	TTY *Terminal
}

// Terminal is a pseudo terminal's initial size and how it changes.
type Terminal struct {
	Size   WindowSize
	Resize <-chan WindowSize // may be nil
}

// WindowSize is in characters.
type WindowSize struct{ Rows, Cols uint16 }

// Daemon is one process of the mesh. What Stop ended stays down until Start. What a signal ended is started again by a driver's
// cluster if it has a kubelet, and otherwise by nobody: call Start, which waits for the kubelet's, before relying on it.
type Daemon interface {
	// Signal sends sig and does not wait.
	Signal(ctx context.Context, sig os.Signal) error
	// Stop ends the daemon with SIGTERM, after its grace period with SIGKILL, and waits. It stays down until Start.
	Stop(ctx context.Context) error
	// Start starts the daemon if it is not running, or has got a signal of ours that ends it, with the command and environment of
	// Up, and does not wait for Ready. env, "NAME=value", overrides variables for this run only.
	Start(ctx context.Context, env ...string) error
	// Restart is Stop and Start.
	Restart(ctx context.Context, env ...string) error
	// Replace puts a new process in the daemon's place without a moment in which there is none, as a rolling update with
	// maxSurge 1 does: a second one is started beside the first, with env as Start takes it, and once it is ready the first
	// gets SIGTERM and drains. From then on every other method means the new one. Replace returns when the first has ended.
	// If the new one does not become ready, the first stays and the error says why. Only ztunnel can be replaced.
	Replace(ctx context.Context, env ...string) error
	// Ready blocks until the daemon's own readiness check succeeds.
	Ready(ctx context.Context) error
	// Status is a look at the process.
	Status(ctx context.Context) (Status, error)
	// Logs holds at least every line written since that time and until now, across restarts; earlier lines may precede
	// them. The caller closes it.
	Logs(ctx context.Context, since time.Time) (io.ReadCloser, error)
	// LogsSoFar is Logs for who waits for a line: where logs come to this process by themselves, it has what has come, and asks
	// nobody whether that is all.
	LogsSoFar(ctx context.Context, since time.Time) (io.ReadCloser, error)
	// Admin reaches the daemon's own network: the port of a request's URL is the port dialled there on loopback
	// (15000 admin, 15020 metrics, 15021 readiness); its host is ignored.
	Admin() http.RoundTripper
}

// Status is a daemon's process at one moment.
type Status struct {
	Running  bool
	PID      int // as the host's root namespace knows it; 0 if not running or if the driver cannot say
	Started  time.Time
	ExitCode int // of the last run, if not Running; 128+n if signal n ended it
}

// Link is a cable: of the underlay, or a pod's to its node.
type Link interface {
	// Cut drops every packet in both directions, without any answer, until Restore. A pod's cable cannot be cut.
	Cut(ctx context.Context) error
	// Impair makes the link worse until Restore, from a to b as there says and from b to a as back says; a second call replaces
	// the first. Packets that are on their way when it changes are delivered.
	Impair(ctx context.Context, there, back Impairment) error
	// Traffic is what has passed since Impair; without one it is an error.
	Traffic(ctx context.Context) (LinkTraffic, error)
	// Restore undoes Cut and Impair; without either it does nothing.
	Restore(ctx context.Context) error
}

// Impairment is what one direction of a link does to its packets; what is sent to many, such as a neighbour's
// question who has an address, is spared between two machines of the underlay. The zero value lets everything pass.
type Impairment struct {
	Delay  time.Duration
	Jitter time.Duration // a packet's delay is within Delay ± Jitter, in the order of sending

	// Shares of all packets, from 0 to 1. A reordered packet is not delayed, so that it overtakes others.
	Loss, Duplicate, Reorder float64

	Seed uint64 // what becomes of the nth packet follows from it
}

// Validate says what cannot be meant.
func (i Impairment) Validate() error {
	for _, share := range []float64{i.Loss, i.Duplicate, i.Reorder} {
		if share < 0 || share > 1 {
			return fmt.Errorf("share %v of packets is not from 0 to 1", share)
		}
	}
	if i.Jitter < 0 || i.Delay < i.Jitter {
		return fmt.Errorf("delay %s with jitter %s: some packets would have to arrive before they are sent", i.Delay, i.Jitter)
	}
	if i.Reorder > 0 && i.Delay == 0 {
		return errors.New("without a delay no packet can overtake another")
	}
	return nil
}

// LinkTraffic counts what an impaired link carried.
type LinkTraffic struct{ There, Back Passed }

// Passed counts packets of one direction, as they came in: some of them were lost, sent twice, or sent ahead of others. Those
// that no buffer could hold are Overflowed.
type Passed struct {
	Packets, Bytes                          uint64
	Lost, Duplicated, Reordered, Overflowed uint64
}

// Target names a network namespace: a pod's, a node's or an external host's. Exactly one of the three is set.
type Target struct {
	Pod      PodRef
	Node     string
	External string

	Interface string // "" captures on all interfaces
	Filter    string // in the syntax of package wire; "" captures everything

	// Stream, if set, gets the packets as they come, in pcapng; Capture.Stop then returns none.
	Stream io.Writer `json:"-"`
}

// Capture is a running packet capture.
type Capture interface {
	// Stop ends the recording once every packet that was sent before the call is in it. drops counts packets that the
	// kernel could not hand over: with drops, absence of a packet proves nothing. A second Stop returns an error.
	Stop(ctx context.Context) (pcapng []byte, drops int, err error)
}

// Inspection is a namespace's network state as text for people; an empty part was not to be had.
type Inspection struct {
	Links   string `json:"links"`   // interfaces and addresses
	Routes  string `json:"routes"`  // routes and policy rules of both families
	Rules   string `json:"rules"`   // netfilter rules with counters
	Sockets string `json:"sockets"` // listening and connected sockets

	// Refused, of a node, has a line for each of its pods and direction of which a NetworkPolicy dropped packets.
	Refused []string `json:"refused,omitempty"`
}

// PodRef names a pod.
type PodRef struct {
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

// PodInfo is a pod at one moment.
type PodInfo struct {
	PodRef
	UID            string            `json:"uid"`
	Node           string            `json:"node"`
	ServiceAccount string            `json:"serviceAccount"`
	Labels         map[string]string `json:"labels,omitempty"`
	IPs            []netip.Addr      `json:"ips"` // in the order of status.podIPs; empty before the network is there
	Ready          bool              `json:"ready"`
	Enrolled       bool              `json:"enrolled"`          // the agent says that capture is in place
	Problem        string            `json:"problem,omitempty"` // why the pod is not ready, if it is known: a refused CNI ADD, an exit code
}
