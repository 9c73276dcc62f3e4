// SPDX-License-Identifier: Apache-2.0

package zds

import (
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

// maxDescriptors is how many descriptors are taken in with one packet, to close those that must not be there.
const maxDescriptors = 16

// errTooLong says that a message was not sent and the conversation can go on.
var errTooLong = fmt.Errorf("message does not fit a packet of %d bytes", maxPacket)

// send writes m as one packet, with the descriptor fd unless that is negative.
func send(c *net.UnixConn, m proto.Message, fd int) error {
	b, err := proto.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	if len(b) > maxPacket {
		return fmt.Errorf("%w: it has %d bytes", errTooLong, len(b))
	}
	var oob []byte
	if fd >= 0 {
		oob = unix.UnixRights(fd)
	}
	if err := c.SetWriteDeadline(time.Now().Add(messageTimeout)); err != nil {
		return err
	}
	_, _, err = c.WriteMsgUnix(b, oob, nil)
	return err
}

// receive reads one packet into m and returns the descriptors that came with it, which are the caller's to close. io.EOF
// is the end of the conversation.
func receive(c *net.UnixConn, m proto.Message) (fds []int, err error) {
	var buf [maxPacket]byte
	oob := make([]byte, unix.CmsgSpace(4*maxDescriptors))
	n, oobn, flags, _, err := c.ReadMsgUnix(buf[:], oob)
	if err != nil {
		return nil, err
	}
	fds, err = descriptors(oob[:oobn])
	switch {
	case err != nil:
	case flags&unix.MSG_TRUNC != 0:
		err = fmt.Errorf("%w: a packet of more than %d bytes", ErrProtocol, maxPacket)
	case flags&unix.MSG_CTRUNC != 0:
		err = fmt.Errorf("%w: more than %d descriptors", ErrProtocol, maxDescriptors)
	case n == 0:
		err = io.EOF // what a packet without content looks like; no message is empty
	default:
		if uerr := proto.Unmarshal(buf[:n], m); uerr != nil {
			err = fmt.Errorf("%w: %w", ErrProtocol, uerr)
		}
	}
	if err != nil {
		closeAll(fds)
		return nil, err
	}
	return fds, nil
}

// descriptors are those in a packet's control messages. There may be some with an error too: they are the caller's to close.
func descriptors(oob []byte) (fds []int, err error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	for i := range messages {
		if len(messages[i].Data)%4 != 0 { // no kernel says so; ParseUnixRights would panic
			return fds, fmt.Errorf("%w: descriptors of %d bytes", ErrProtocol, len(messages[i].Data))
		}
		got, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return fds, fmt.Errorf("%w: %w", ErrProtocol, err)
		}
		fds = append(fds, got...)
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
