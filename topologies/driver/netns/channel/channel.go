// SPDX-License-Identifier: Apache-2.0

// Package channel exchanges JSON messages and file descriptors over a connected Unix stream socket. The lab's holder
// speaks it with its clients and with the init process of every node and pod. It does not know what is said.
// A message is its length (4 bytes, big endian) and one JSON value; descriptors travel with its first byte (unix(7), SCM_RIGHTS).
package channel

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	maxMessage = 64 << 20
	maxFiles   = 8
)

// Conn is one end of a channel. Send may be called concurrently, Receive by one goroutine at a time.
type Conn struct {
	unix *net.UnixConn

	mu sync.Mutex // serialises writers
}

// New speaks over c, which it owns from now on.
func New(c *net.UnixConn) *Conn { return &Conn{unix: c} }

// FromFile speaks over an inherited socket; it closes f.
func FromFile(f *os.File) (*Conn, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("open channel: %w", err)
	}
	u, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("open channel: %T is not a Unix socket", c)
	}
	return New(u), nil
}

// Pair makes a channel: an end for this process and one to be inherited by another.
func Pair() (*Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make socket pair: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "channel")
	ours, err := FromFile(os.NewFile(uintptr(fds[0]), "channel"))
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return ours, theirs, nil
}

// Close ends the channel in both directions. Closing it again does nothing.
func (c *Conn) Close() { _ = c.unix.Close() }

// Send writes v and duplicates files into the receiver; the caller keeps its own.
func (c *Conn) Send(v any, files ...*os.File) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if len(body) > maxMessage || len(files) > maxFiles {
		return fmt.Errorf("send message: %d bytes and %d descriptors are too many", len(body), len(files))
	}
	packet := append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...)
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	n, _, err := c.unix.WriteMsgUnix(packet, rights, nil)
	if err == nil && n < len(packet) {
		_, err = c.unix.Write(packet[n:])
	}
	if err != nil {
		return fmt.Errorf("send message: %w", err)
	}
	return nil
}

// Receive reads one message into v and returns the descriptors that came with it, which the caller closes. io.EOF means
// that the other end closed between messages.
func (c *Conn) Receive(v any) ([]*os.File, error) {
	var head [4]byte
	oob := make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, flags, _, err := c.unix.ReadMsgUnix(head[:], oob)
	if err == nil && n == 0 {
		err = io.EOF
	}
	if err != nil {
		return nil, receiveError(err)
	}
	files, err := parseRights(oob[:oobn])
	if err == nil && flags&unix.MSG_CTRUNC != 0 {
		err = errors.New("descriptors were cut off")
	}
	if err == nil {
		err = c.body(head[:], n, v)
	}
	if err != nil {
		CloseAll(files)
		return nil, receiveError(err)
	}
	return files, nil
}

func receiveError(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		return io.EOF
	}
	return fmt.Errorf("receive message: %w", err)
}

func (c *Conn) body(head []byte, have int, v any) error {
	if _, err := io.ReadFull(c.unix, head[have:]); err != nil {
		return err
	}
	size := binary.BigEndian.Uint32(head)
	if size > maxMessage {
		return fmt.Errorf("%d bytes are more than %d", size, maxMessage)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(c.unix, body); err != nil {
		return err
	}
	return json.Unmarshal(body, v)
}

func parseRights(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			continue // another kind of control message
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received"))
		}
	}
	return files, nil
}

// CloseAll closes every file.
func CloseAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
