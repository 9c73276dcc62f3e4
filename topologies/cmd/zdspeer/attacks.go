// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io"
	"os"
	"syscall"
)

// attack is what is done to one connection.
type attack func(c *conn)

// field is a length-delimited protobuf field with a number below 16 and content shorter than 128 bytes, or much longer.
func field(number byte, content string) string {
	length := []byte{byte(len(content))}
	if len(content) > 127 {
		length = []byte{byte(len(content)) | 0x80, byte(len(content) >> 7)}
	}
	return string([]byte{number<<3 | 2}) + string(length) + content
}

// Messages (reference, "ZDS").
var (
	hello        = []byte{0x08, 1}
	ack          = []byte(field(1, ""))
	snapshotSent = []byte(field(3, ""))
	addMessage   = []byte(field(1, field(1, "u")+field(2, field(1, "hostile")+field(2, "shop")+field(3, "web"))))
)

func delMessage(uid string) []byte  { return []byte(field(2, field(2, uid))) }
func keepMessage(uid string) []byte { return []byte(field(5, field(1, uid))) }

// ackError is the error in an acknowledgement; "" if there is none.
func ackError(b []byte) string {
	if len(b) < 4 || b[0] != 1<<3|2 {
		return ""
	}
	for i := range b { // its field 1, after the length of the message around it
		if b[i] == 1<<3|2 && i > 0 {
			return string(b[min(i+2, len(b)):])
		}
	}
	return ""
}

// descriptors are one of a namespace, the peer's own, and one of none. They last as long as the process.
func descriptors() (ns, null int) {
	n, err := os.Open("/proc/self/ns/net")
	if err != nil {
		return -1, -1
	}
	ns, err = syscall.Dup(int(n.Fd()))
	n.Close()
	if err != nil {
		return -1, -1
	}
	null, err = syscall.Open(os.DevNull, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		null = -1
	}
	return ns, null
}

func repeat(fd, n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = fd
	}
	return out
}

// asAgent are attacks on a ztunnel.
func asAgent() map[string]attack {
	ns, null := descriptors()
	return map[string]attack{
		"add-no-descriptor":    func(c *conn) { c.send(addMessage) },
		"add-two-descriptors":  func(c *conn) { c.send(addMessage, ns, ns) },
		"add-many-descriptors": func(c *conn) { c.send(addMessage, repeat(ns, 200)...) },
		"add-no-namespace":     func(c *conn) { c.send(addMessage, null) },
		"truncated":            func(c *conn) { m := addMessage; c.send(m[:len(m)-1], ns) },
		"unknown-message":      func(c *conn) { c.send([]byte{0x32, 0}) },
		"no-message":           func(c *conn) { c.send([]byte{0xff, 0xff}) },
		"oversized":            func(c *conn) { c.send(make([]byte, 64<<10), ns) },
		"keep-descriptor":      func(c *conn) { c.send(keepMessage("u"), ns) },
		"del-unknown":          func(c *conn) { c.send(delMessage("u")) },
		"add-nothing":          func(c *conn) { c.send([]byte(field(1, "")), ns) },
	}
}

// asZtunnel are attacks on an agent. "mute" acknowledges whatever it is told and does nothing of it, until stdin ends.
func asZtunnel(stdin io.Reader) map[string]attack {
	ns, _ := descriptors()
	greet := func(c *conn) {
		c.send(hello)
		_, _ = c.packet(patience)
	}
	return map[string]attack{
		"no-message":       func(c *conn) { c.send([]byte{0xff, 0xff}) },
		"unknown-version":  func(c *conn) { c.send([]byte{0x08, 9}) },
		"hello-descriptor": func(c *conn) { c.send(hello, ns) },
		"hello-oversized":  func(c *conn) { c.send(make([]byte, 64<<10)) },
		"ack-descriptors":  func(c *conn) { greet(c); c.send(ack, repeat(ns, 200)...) },
		"ack-oversized":    func(c *conn) { greet(c); c.send(make([]byte, 64<<10), ns) },
		"ack-unknown":      func(c *conn) { greet(c); c.send([]byte{0x32, 0}) },
		"ack-twice": func(c *conn) {
			greet(c)
			c.send(ack)
			c.send(ack)
			c.send(ack)
			c.send(ack)
			c.send(ack)
		},
		"request-for-answer": func(c *conn) { greet(c); c.send(snapshotSent) },
		"mute":               func(c *conn) { c.mute(stdin) },
	}
}

func (c *conn) mute(stdin io.Reader) {
	c.send(hello)
	go func() { // stdin's end is this process's
		_, _ = io.Copy(io.Discard, stdin)
		c.Close()
	}()
	for {
		b, err := c.packet(24 * 60 * patience)
		if err != nil {
			return
		}
		if len(b) > 0 {
			c.send(ack)
		}
	}
}
