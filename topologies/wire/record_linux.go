// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
	"golang.org/x/sys/unix"
)

// AnyInterface records on all interfaces of the namespace, also those that come later.
const AnyInterface = "any"

// RecordOptions choose what Record records.
type RecordOptions struct {
	Interface string // "" is AnyInterface
	Filter    Filter
	// Ready is called once packets are being recorded; it may be nil.
	Ready func()
}

// Stats are a finished recording's numbers.
type Stats struct {
	Packets int `json:"packets"` // written
	Drops   int `json:"drops"`   // lost before they could be looked at: absence of a packet then proves nothing
}

// Record writes the packets of the namespace of the calling process to w as pcapng, until ctx ends and every packet that was
// sent before that is written. It needs CAP_NET_RAW. What passes through the loopback interface is recorded once.
func Record(ctx context.Context, w io.Writer, o RecordOptions) (Stats, error) {
	r := &recorder{out: w, filter: o.Filter, parser: newParser(), ids: map[int]int{}, names: map[int]string{}, queue: newQueue()}
	index, err := r.open(o.Interface)
	if err != nil {
		return Stats{}, fmt.Errorf("record packets: %w", err)
	}
	ring, err := openRing(index, o.Filter.controlOnly())
	if err != nil {
		return Stats{}, fmt.Errorf("record packets: %w", err)
	}
	defer ring.close()
	if o.Ready != nil {
		o.Ready()
	}
	if err := r.run(ctx, ring); err != nil {
		return Stats{}, fmt.Errorf("record packets: %w", err)
	}
	if r.stats.Drops, err = ring.drops(); err != nil {
		return Stats{}, fmt.Errorf("record packets: %w", err)
	}
	err = r.writer.WriteInterfaceStats(0, pcapgo.NgInterfaceStatistics{
		LastUpdate: time.Now(), PacketsReceived: uint64(r.stats.Packets), PacketsDropped: uint64(r.stats.Drops),
	})
	if err == nil {
		err = r.writer.Flush()
	}
	if err != nil {
		return Stats{}, fmt.Errorf("record packets: %w", err)
	}
	return r.stats, nil
}

// recorder has two halves: one empties the ring as fast as it can, the other writes.
type recorder struct {
	out    io.Writer
	filter Filter
	queue  *queue

	// owned by the half that reads the ring
	parser *parser
	names  map[int]string

	// owned by the half that writes, and by Record before and after it
	writer *pcapgo.NgWriter
	ids    map[int]int // the recording's interface numbers by the kernel's
	stats  Stats
}

// open finds the interface and begins the recording; index 0 is all interfaces.
func (r *recorder) open(name string) (index int, err error) {
	all, err := net.Interfaces()
	if err != nil {
		return 0, fmt.Errorf("list interfaces: %w", err)
	}
	slices.SortFunc(all, func(a, b net.Interface) int { return a.Index - b.Index })
	if name == "" || name == AnyInterface {
		return 0, r.begin(all...)
	}
	var names []string
	for _, i := range all {
		if i.Name == name {
			return i.Index, r.begin(i)
		}
		names = append(names, i.Name)
	}
	return 0, fmt.Errorf("no interface %q here; there are %s, and %q for all", name, strings.Join(names, ", "), AnyInterface)
}

func (r *recorder) begin(interfaces ...net.Interface) (err error) {
	if len(interfaces) == 0 {
		return errors.New("this namespace has no interface")
	}
	options := pcapgo.DefaultNgWriterOptions
	options.SectionInfo.Application = "ambientlab"
	r.writer, err = pcapgo.NewNgWriterInterface(r.out, ngInterface(interfaces[0].Name), options)
	if err != nil {
		return err
	}
	r.ids[interfaces[0].Index] = 0
	for _, i := range interfaces[1:] {
		if r.ids[i.Index], err = r.writer.AddInterface(ngInterface(i.Name)); err != nil {
			return err
		}
	}
	return r.writer.Flush()
}

func ngInterface(name string) pcapgo.NgInterface {
	i := pcapgo.DefaultNgInterface
	i.Name, i.LinkType = name, layers.LinkTypeEthernet
	return i
}

// run records until ctx ends, and then what is older than its end.
func (r *recorder) run(ctx context.Context, ring *ring) error {
	stop := context.AfterFunc(ctx, ring.wake)
	defer stop()
	var writing sync.WaitGroup
	var writeErr error
	writing.Go(func() {
		if writeErr = r.writeAll(); writeErr != nil {
			r.queue.abandon()
			ring.wake()
		}
	})
	err := r.read(ring)
	r.queue.end()
	writing.Wait()
	return errors.Join(writeErr, err)
}

// read empties the ring until it is woken, and then drains it: until the kernel has had time to hand over its last block, or
// packets come that are later than that.
func (r *recorder) read(ring *ring) error {
	for {
		frames, err := ring.next()
		if errors.Is(err, errWoken) {
			break
		}
		if err != nil {
			return err
		}
		r.keep(frames)
		ring.release()
	}
	for end := time.Now(); ; {
		frames, err := ring.nextWithin(drainQuiet)
		if errors.Is(err, errWoken) {
			return nil
		}
		if err != nil {
			return err
		}
		past := slices.ContainsFunc(frames, func(f frame) bool { return f.at.After(end) })
		r.keep(frames)
		ring.release()
		if past {
			return nil
		}
	}
}

// keep copies what the filter wants out of the ring.
func (r *recorder) keep(frames []frame) {
	kept := slices.DeleteFunc(frames, func(f frame) bool { return !r.wants(f) })
	size := 0
	for _, f := range kept {
		size += len(f.data)
	}
	if len(kept) == 0 {
		return
	}
	copies, data := make([]frame, 0, len(kept)), make([]byte, 0, size)
	for _, f := range kept {
		start := len(data)
		data = append(data, f.data...)
		f.data = data[start:]
		f.name = r.name(f.index)
		copies = append(copies, f)
	}
	r.queue.add(copies, size)
}

func (r *recorder) wants(f frame) bool {
	switch {
	case f.hardware == unix.ARPHRD_LOOPBACK && f.outgoing:
		return false // the loopback interface shows each packet on its way out and on its way in
	case f.hardware != unix.ARPHRD_ETHER && f.hardware != unix.ARPHRD_LOOPBACK:
		return false
	}
	seen := r.parser.parse(f.data)
	return r.filter.match(&seen)
}

// name is the name of an interface; it is asked for at its first packet, when it is there.
func (r *recorder) name(index int) string {
	name, known := r.names[index]
	if !known {
		name = fmt.Sprintf("interface %d", index)
		if i, err := net.InterfaceByIndex(index); err == nil {
			name = i.Name
		}
		r.names[index] = name
	}
	return name
}

func (r *recorder) writeAll() error {
	for {
		frames, ended := r.queue.take()
		for _, f := range frames {
			if err := r.write(f); err != nil {
				return err
			}
		}
		// Whoever reads along sees packets while the recording goes on.
		if err := r.writer.Flush(); err != nil || ended {
			return err
		}
	}
}

func (r *recorder) write(f frame) error {
	id, known := r.ids[f.index]
	if !known {
		var err error
		if id, err = r.writer.AddInterface(ngInterface(f.name)); err != nil {
			return err
		}
		r.ids[f.index] = id
	}
	r.stats.Packets++
	return r.writer.WritePacket(gopacket.CaptureInfo{
		Timestamp: f.at, CaptureLength: len(f.data), Length: f.length, InterfaceIndex: id,
	}, f.data)
}
