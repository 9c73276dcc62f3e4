// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The ring between kernel and recorder. An ordinary user's receive buffer is too small for a burst of large packets; a ring is
// not counted against it.
const (
	blockBytes = 1 << 20
	blocks     = 32
	fewBlocks  = 4    // for control packets alone
	frameBytes = 2048 // only has to divide blockBytes
	retireMs   = 8    // a block is handed over when it is full, or this long after its first packet
	drainQuiet = 5 * retireMs * time.Millisecond
)

// Offsets in struct tpacket_block_desc and struct tpacket3_hdr, which a struct sockaddr_ll follows.
const (
	blockStatus, blockPackets, blockFirst                  = 8, 12, 16
	frameNext, frameSec, frameNsec, frameCaptured, frameAt = 0, 4, 8, 12, 24
	frameLength                                            = 16
	linkAddress                                            = 48
	linkIndex, linkHardware, linkPacketType                = linkAddress + 4, linkAddress + 8, linkAddress + 10
)

// errWoken says that waiting was ended by wake or by its deadline.
var errWoken = errors.New("woken")

// frame is one packet in the ring; data is valid until release.
type frame struct {
	at       time.Time
	index    int
	name     string // of the interface, once the packet is kept
	hardware uint16
	outgoing bool
	length   int // on the wire
	data     []byte
}

type ring struct {
	f      *os.File
	blocks int
	memory []byte
	block  int // the one to be read next
	frames []frame
	lost   int
}

// openRing makes a packet socket that records from now on; index 0 is all interfaces. The kernel may leave out all that
// is not needed to see connections come and go.
func openRing(index int, controlOnly bool) (*ring, error) {
	// Without a protocol nothing arrives before the ring is there.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if errors.Is(err, unix.EPERM) {
		return nil, fmt.Errorf("open packet socket: %w (it needs CAP_NET_RAW in the namespace)", err)
	}
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	r := &ring{f: os.NewFile(uintptr(fd), "packet socket"), blocks: blocks}
	if controlOnly {
		r.blocks = fewBlocks
		err = attach(fd, controlProgram())
	}
	if err = errors.Join(err, r.setUp(fd, index)); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

func (r *ring) setUp(fd, index int) error {
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_VERSION, unix.TPACKET_V3); err != nil {
		return fmt.Errorf("choose version of packet ring: %w", err)
	}
	err := unix.SetsockoptTpacketReq3(fd, unix.SOL_PACKET, unix.PACKET_RX_RING, &unix.TpacketReq3{
		Block_size: blockBytes, Block_nr: uint32(r.blocks), Frame_size: frameBytes, Frame_nr: uint32(blockBytes / frameBytes * r.blocks), Retire_blk_tov: retireMs,
	})
	if err != nil {
		return fmt.Errorf("make packet ring: %w", err)
	}
	r.memory, err = unix.Mmap(fd, 0, blockBytes*r.blocks, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map packet ring: %w", err)
	}
	all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: index}); err != nil {
		return fmt.Errorf("bind packet socket: %w", err)
	}
	return nil
}

func (r *ring) close() {
	if r.memory != nil {
		_ = unix.Munmap(r.memory)
	}
	_ = r.f.Close()
}

// wake makes next return errWoken, now or at its next call.
func (r *ring) wake() { _ = r.f.SetReadDeadline(time.Unix(1, 0)) }

// nextWithin is next with an end of its own, which replaces what wake has set.
func (r *ring) nextWithin(d time.Duration) ([]frame, error) {
	if err := r.f.SetReadDeadline(time.Now().Add(d)); err != nil {
		return nil, err
	}
	return r.next()
}

// next waits for a block and returns its packets. After them comes release.
func (r *ring) next() ([]frame, error) {
	rc, err := r.f.SyscallConn()
	if err != nil {
		return nil, err
	}
	err = rc.Read(func(uintptr) bool { return atomic.LoadUint32(r.status())&unix.TP_STATUS_USER != 0 })
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, errWoken
	}
	if err != nil {
		return nil, fmt.Errorf("wait for packets: %w", err)
	}
	r.read()
	return r.frames, nil
}

// status is the word by which kernel and recorder hand the current block to each other.
func (r *ring) status() *uint32 {
	return (*uint32)(unsafe.Pointer(&r.memory[r.block*blockBytes+blockStatus]))
}

func (r *ring) read() {
	block := r.memory[r.block*blockBytes : (r.block+1)*blockBytes]
	u32 := binary.NativeEndian.Uint32
	r.frames = r.frames[:0]
	at := u32(block[blockFirst:])
	for range u32(block[blockPackets:]) {
		h := block[at:]
		start := uint32(binary.NativeEndian.Uint16(h[frameAt:]))
		captured := u32(h[frameCaptured:])
		r.frames = append(r.frames, frame{
			at:       time.Unix(int64(u32(h[frameSec:])), int64(u32(h[frameNsec:]))),
			index:    int(u32(h[linkIndex:])),
			hardware: binary.NativeEndian.Uint16(h[linkHardware:]),
			outgoing: h[linkPacketType] == unix.PACKET_OUTGOING,
			length:   int(u32(h[frameLength:])),
			data:     h[start : start+captured : start+captured],
		})
		at += u32(h[frameNext:])
	}
}

// release gives the current block back to the kernel.
func (r *ring) release() {
	atomic.StoreUint32(r.status(), unix.TP_STATUS_KERNEL)
	r.block = (r.block + 1) % r.blocks
}

// drops is the number of packets that the kernel could not put into the ring since it was opened.
func (r *ring) drops() (int, error) {
	rc, err := r.f.SyscallConn()
	if err != nil {
		return 0, err
	}
	err = controlErr(rc, func(fd int) error {
		s, err := unix.GetsockoptTpacketStatsV3(fd, unix.SOL_PACKET, unix.PACKET_STATISTICS) // reading it sets it to zero
		if err != nil {
			return fmt.Errorf("read statistics of packet socket: %w", err)
		}
		r.lost += int(s.Drops)
		return nil
	})
	return r.lost, err
}

func controlErr(rc syscall.RawConn, use func(fd int) error) error {
	var inner error
	if err := rc.Control(func(fd uintptr) { inner = use(int(fd)) }); err != nil {
		return err
	}
	return inner
}
