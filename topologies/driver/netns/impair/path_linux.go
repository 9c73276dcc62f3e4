// SPDX-License-Identifier: Apache-2.0

package impair

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/nodenet"
)

// Device is a network device.
type Device struct {
	NS   *netns.NS // nil is the caller's own
	Name string
}

// do runs fn in the device's namespace.
func (d Device) do(fn func() error) error {
	if d.NS == nil {
		return fn()
	}
	return d.NS.Do(fn)
}

// Path is one direction: what arrives on In for To leaves by Out.
type Path struct {
	In, Out Device
	To      net.HardwareAddr // nil: every packet that arrives
	// Sender is where the packets come from. Its segmentation offload is off while the path is impaired, so that each packet is
	// one of the wire's.
	Sender Device
}

// header is struct virtio_net_hdr: what the kernel left undone of a packet's checksum, which the next kernel goes on with.
const header = 10

// frameRoom holds the largest packet that a kernel hands over, whatever its sender's offloads.
const frameRoom = header + 64<<10 + 64

// forwarder carries one path's packets. Its fields but the counters belong to run.
type forwarder struct {
	path    Path
	in, out *os.File
	fate    *fate
	queue   queue
	buf     []byte
	restore func() error // of the sender's offload
	closing atomic.Bool

	mu     sync.Mutex
	counts lab.Passed // guarded by mu
}

// open makes the sockets: from now on packets are seen, but only run takes them on.
func open(p Path, i lab.Impairment, direction uint64) (*forwarder, error) {
	f := &forwarder{path: p, fate: newFate(i, direction), buf: make([]byte, frameRoom)}
	filter := []bpf.Instruction{bpf.RetConstant{Val: frameRoom}}
	if p.To != nil {
		high, low := uint32(p.To[0])<<24|uint32(p.To[1])<<16|uint32(p.To[2])<<8|uint32(p.To[3]), uint32(p.To[4])<<8|uint32(p.To[5])
		filter = []bpf.Instruction{
			bpf.LoadAbsolute{Off: 0, Size: 4}, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: high, SkipTrue: 3},
			bpf.LoadAbsolute{Off: 4, Size: 2}, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: low, SkipTrue: 1},
			bpf.RetConstant{Val: frameRoom}, bpf.RetConstant{Val: 0},
		}
	}
	var err error
	if f.in, err = packetSocket(p.In, unix.ETH_P_ALL, filter); err != nil {
		return nil, err
	}
	if f.out, err = packetSocket(p.Out, 0, nil); err != nil {
		f.in.Close()
		return nil, err
	}
	if f.restore, err = nodenet.NoSegmentation(p.Sender.NS, p.Sender.Name); err != nil {
		f.in.Close()
		f.out.Close()
		return nil, err
	}
	return f, nil
}

// socketBuffer outlasts a moment in which this process does not run.
const socketBuffer = 8 << 20

func packetSocket(d Device, protocol uint16, filter []bpf.Instruction) (*os.File, error) {
	var file *os.File
	err := d.do(func() error {
		link, err := net.InterfaceByName(d.Name)
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return err
		}
		file = os.NewFile(uintptr(fd), "packets of "+d.Name)
		if err := setUp(fd, filter); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocol<<8 | protocol>>8, Ifindex: link.Index})
	})
	if err != nil {
		if file != nil {
			file.Close()
		}
		return nil, fmt.Errorf("open packet socket on %s: %w", d.Name, err)
	}
	return file, nil
}

func setUp(fd int, filter []bpf.Instruction) error {
	if filter != nil {
		raw, err := bpf.Assemble(filter)
		if err != nil {
			return err
		}
		code := make([]unix.SockFilter, len(raw))
		for i, r := range raw {
			code[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
		}
		if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}); err != nil {
			return err
		}
	}
	for _, option := range []int{unix.PACKET_VNET_HDR, unix.PACKET_IGNORE_OUTGOING} {
		if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, option, 1); err != nil {
			return err
		}
	}
	for _, size := range [][2]int{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, size[0], socketBuffer) == nil {
			continue
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, size[1], socketBuffer); err != nil {
			return err
		}
	}
	return nil
}

// close makes run end.
func (f *forwarder) close() error {
	f.closing.Store(true)
	return f.in.Close()
}

// run forwards until close, then sends what it still holds.
func (f *forwarder) run() error {
	defer f.out.Close()
	for {
		if err := f.in.SetReadDeadline(f.queue.next()); err != nil {
			return f.flush(err)
		}
		n, err := f.in.Read(f.buf)
		now := time.Now()
		switch {
		case err == nil:
			f.take(f.buf[:n], now)
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return f.flush(err)
		}
		f.deliver(now)
	}
}

// flush sends what is queued: the path ends, the packets need not.
func (f *forwarder) flush(why error) error {
	for len(f.queue.list) > 0 {
		f.deliver(f.queue.next())
	}
	if f.closing.Load() {
		return nil
	}
	return fmt.Errorf("forward from %s to %s: %w", f.path.In.Name, f.path.Out.Name, why)
}

func (f *forwarder) take(data []byte, now time.Time) {
	v := f.fate.decide(now)
	full := false
	if !v.lost {
		full = !f.queue.put(data, v.due)
		if v.twice && !full {
			full = !f.queue.put(data, v.due)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.counts.Packets++
	f.counts.Bytes += uint64(len(data) - header)
	add(&f.counts.Lost, v.lost)
	add(&f.counts.Duplicated, v.twice && !v.lost)
	add(&f.counts.Reordered, v.overtakes && !v.lost)
	add(&f.counts.Overflowed, full)
}

func add(n *uint64, yes bool) {
	if yes {
		*n++
	}
}

func (f *forwarder) deliver(now time.Time) {
	for {
		data, ok := f.queue.take(now)
		if !ok {
			return
		}
		if _, err := f.out.Write(data); err != nil { // the device's own queue is full, or the device is gone
			f.mu.Lock()
			f.counts.Overflowed++
			f.mu.Unlock()
		}
	}
}

// passed is what went through so far. What the kernel could not hand over counts as overflowed.
func (f *forwarder) passed() lab.Passed {
	f.mu.Lock()
	defer f.mu.Unlock()
	rc, err := f.in.SyscallConn()
	if err != nil {
		return f.counts
	}
	_ = rc.Control(func(fd uintptr) {
		if s, err := unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil { // reading sets it to zero
			f.counts.Overflowed += uint64(s.Drops)
		}
	})
	return f.counts
}
