// SPDX-License-Identifier: Apache-2.0

// Command zdspeer is a hostile peer on a node's ZDS socket: `zdspeer ztunnel NAME...` talks to the agent as no ztunnel should,
// `zdspeer agent NAME...` waits for a ztunnel and talks to it as no agent should, one connection for each name; "all" is every
// attack that ends by itself. It prints what the other side did, as JSON. Messages are made by hand, for no library makes them
// as wrong as they have to be.
// Source: reference, "ZDS".
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "zdspeer:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("usage: zdspeer [--socket PATH] ztunnel|agent NAME...|all")

// Outcome is what became of one connection.
type Outcome struct {
	Attack string `json:"attack"`
	HungUp bool   `json:"hungUp"`         // the other side ended it
	Said   string `json:"said,omitempty"` // the acknowledgement's error
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("zdspeer", flag.ContinueOnError)
	fs.SetOutput(stderr)
	socket := fs.String("socket", "/var/run/ztunnel/ztunnel.sock", "the node's socket")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() < 2 {
		return errUsage
	}
	attacks := map[string]map[string]attack{"ztunnel": asZtunnel(stdin), "agent": asAgent()}[fs.Arg(0)]
	if attacks == nil {
		return errUsage
	}
	names := fs.Args()[1:]
	if slices.Equal(names, []string{"all"}) {
		names = slices.DeleteFunc(slices.Sorted(maps.Keys(attacks)), func(n string) bool { return n == "mute" })
	}
	connect := connector(ctx, fs.Arg(0), *socket)
	var done []Outcome
	for _, name := range names {
		do := attacks[name]
		if do == nil {
			return fmt.Errorf("no attack %q; there are: %s", name, strings.Join(slices.Sorted(maps.Keys(attacks)), ", "))
		}
		c, err := connect()
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		o := Outcome{Attack: name}
		do(c)
		if fs.Arg(0) == "agent" {
			o.Said, o.HungUp = c.answered()
		} else {
			o.HungUp = c.ended()
		}
		c.Close()
		done = append(done, o)
	}
	return json.NewEncoder(stdout).Encode(done)
}

// connector returns what makes the next connection: dialled as a ztunnel; accepted as an agent, past the hello, on a socket
// that is made anew each time, since a ztunnel that waits looks for that.
func connector(ctx context.Context, role, path string) func() (*conn, error) {
	if role == "ztunnel" {
		return func() (*conn, error) {
			c, err := new(net.Dialer).DialContext(ctx, "unixpacket", path)
			if err != nil {
				return nil, err
			}
			return &conn{c.(*net.UnixConn)}, nil
		}
	}
	return func() (*conn, error) {
		_ = os.Remove(path) // of an agent that was killed, or ours
		l, err := new(net.ListenConfig).Listen(ctx, "unixpacket", path)
		if err != nil {
			return nil, err
		}
		defer l.Close()
		defer context.AfterFunc(ctx, func() { l.Close() })()
		if err := os.Chmod(path, 0o600); err != nil { // from now on it can be dialled, and this is what tells
			return nil, err
		}
		c, err := l.Accept()
		if err != nil {
			return nil, err
		}
		greeted := &conn{c.(*net.UnixConn)}
		_, err = greeted.packet(patience)
		return greeted, err
	}
}

// patience is more than either side may take to answer.
const patience = 10 * time.Second

type conn struct{ *net.UnixConn }

// send is one packet. That the other side is gone already shows in what comes after.
func (c *conn) send(b []byte, fds ...int) {
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	_ = c.SetWriteDeadline(time.Now().Add(patience))
	_, _, _ = c.WriteMsgUnix(b, oob, nil)
}

func (c *conn) packet(wait time.Duration) ([]byte, error) {
	buf := make([]byte, 4096)
	if err := c.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return nil, err
	}
	n, _, _, _, err := c.ReadMsgUnix(buf, nil)
	if err == nil && n == 0 {
		err = io.EOF
	}
	return buf[:max(n, 0)], err
}

// answered is what a ztunnel says to the attack, if it does not hang up. It answers every message in turn, so that one who
// answers the next, too, has not.
func (c *conn) answered() (said string, hungUp bool) {
	c.send(delMessage("nobody"))
	b, err := c.packet(patience)
	if err == nil {
		said = ackError(b)
		_, err = c.packet(patience)
	}
	return said, ended(err)
}

// ended listens until an agent hangs up, and reports whether it does. It says many things unasked.
func (c *conn) ended() bool {
	for {
		if _, err := c.packet(patience); err != nil {
			return ended(err)
		}
	}
}

func ended(err error) bool { return err != nil && !errors.Is(err, os.ErrDeadlineExceeded) }
