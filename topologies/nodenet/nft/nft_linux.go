// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"context"
	"fmt"
	"io"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/ambientlab/ambientlab/dataplane/netns"
)

// sendBuffer holds a whole transaction, which is one datagram. An ordinary user gets as much as net.core.wmem_max allows.
const sendBuffer = 8 << 20

// Transaction runs the changes that fill asks for as one. nftables encodes them, but does not send them: it asks for an echo
// and an answer to every single message, and those of a few hundred rules are more than an ordinary user's socket holds.
func Transaction(fill func(*nftables.Conn)) error {
	var messages []netlink.Message
	conn, err := nftables.New(nftables.WithTestDial(func(batch []netlink.Message) ([]netlink.Message, error) {
		messages = append(messages, batch...)
		return nil, io.EOF // no answers
	}))
	if err != nil {
		return err
	}
	fill(conn)
	if err := conn.Flush(); err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	return send(messages)
}

// send sends a batch and reads the answer to its last change; errors come before it (nfnetlink batches, libmnl).
func send(messages []netlink.Message) error {
	const envelope = 2 // begin and end
	if len(messages) <= envelope {
		return nil
	}
	for i := range messages {
		h := &messages[i].Header
		h.PID, h.Sequence = 0, 0
		h.Flags &^= netlink.Acknowledge | netlink.Echo
	}
	messages[len(messages)-envelope].Header.Flags |= netlink.Acknowledge
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }()
	if err := conn.SetWriteBuffer(sendBuffer); err != nil {
		return err
	}
	if _, err := conn.SendMessages(messages); err != nil {
		return err
	}
	_, err = conn.Receive()
	return err
}

// Inside runs fn within ns, or in the caller's own namespace if ns is nil. what begins the error's text: "apply node network".
func Inside(ctx context.Context, ns *netns.NS, what string, fn func() error) error {
	err := ctx.Err()
	where := "this namespace"
	switch {
	case err != nil:
	case ns == nil:
		err = fn()
	default:
		where = ns.String()
		err = ns.Do(fn)
	}
	if err != nil {
		return fmt.Errorf("%s in %s: %w", what, where, err)
	}
	return nil
}
