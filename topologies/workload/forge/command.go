// SPDX-License-Identifier: Apache-2.0

package forge

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"
)

// ConnectCommand is a parsed `workload connect`.
type ConnectCommand struct {
	CertDir string
	Request Request
}

// Args is the command line that ParseConnect reads back to c.
func (c ConnectCommand) Args() []string {
	a := []string{"--cert", c.CertDir, "--payload", string(c.Request.Payload)}
	if c.Request.Timeout > 0 {
		a = append(a, "--timeout", c.Request.Timeout.String())
	}
	for _, f := range c.Request.Fields {
		a = append(a, "--field", f.Name+"="+f.Value)
	}
	return append(a, c.Request.To)
}

// ParseConnect reads the arguments of `workload connect`. Messages about usage go to stderr.
func ParseConnect(args []string, stderr io.Writer) (ConnectCommand, error) {
	c := ConnectCommand{}
	fs := flags("workload connect [flags] HOST:PORT", stderr)
	fs.StringVar(&c.CertDir, "cert", "", "`directory` that `workload cert` has written")
	fs.DurationVar(&c.Request.Timeout, "timeout", 5*time.Second, "for everything")
	fs.Func("field", "`name=value` of a header field, repeatable; :method=CONNECT and :authority=… are not added by themselves", func(s string) error {
		name, value, ok := strings.Cut(s, "=")
		if !ok {
			return errors.New("want name=value")
		}
		c.Request.Fields = append(c.Request.Fields, Field{name, value})
		return nil
	})
	fs.Func("payload", "`bytes` to send into the tunnel", func(s string) error {
		c.Request.Payload = []byte(s)
		return nil
	})
	if err := fs.Parse(args); err != nil {
		return c, err
	}
	if fs.NArg() != 1 || c.CertDir == "" {
		fs.Usage()
		return c, fmt.Errorf("want --cert and one HOST:PORT, got %d arguments", fs.NArg())
	}
	c.Request.To = fs.Arg(0)
	return c, nil
}

// Args is the command line that ParseSYN reads back to s.
func (s SYN) Args() []string {
	a := []string{"--via", string(s.Via)}
	if s.Source.IsValid() {
		a = append(a, "--source", s.Source.String())
	}
	if s.Wait > 0 {
		a = append(a, "--wait", s.Wait.String())
	}
	return append(a, s.To.String())
}

// ParseSYN reads the arguments of `workload syn`. Messages about usage go to stderr.
func ParseSYN(args []string, stderr io.Writer) (SYN, error) {
	s := SYN{Via: ViaPacket}
	fs := flags("workload syn [flags] ADDRESS:PORT", stderr)
	fs.Func("via", "`packet`: an AF_PACKET socket, past all rules; raw: a raw IP socket", func(v string) error {
		s.Via = Via(v)
		if s.Via != ViaPacket && s.Via != ViaRaw {
			return errors.New("want packet or raw")
		}
		return nil
	})
	fs.Func("source", "source `address` (default: the pod's)", func(v string) (err error) {
		s.Source, err = netip.ParseAddr(v)
		return err
	})
	fs.DurationVar(&s.Wait, "wait", time.Second, "for an answer")
	if err := fs.Parse(args); err != nil {
		return s, err
	}
	if fs.NArg() != 1 {
		fs.Usage()
		return s, fmt.Errorf("want one ADDRESS:PORT, got %d arguments", fs.NArg())
	}
	var err error
	if s.To, err = netip.ParseAddrPort(fs.Arg(0)); err == nil && !s.To.Addr().Is4() {
		err = errors.New("want an IPv4 address")
	}
	return s, err
}

func flags(usage string, stderr io.Writer) *flag.FlagSet {
	fs := flag.NewFlagSet(strings.Join(strings.Fields(usage)[:2], " "), flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		_, _ = fmt.Fprintln(stderr, "usage: "+usage)
		fs.PrintDefaults()
	}
	return fs
}
