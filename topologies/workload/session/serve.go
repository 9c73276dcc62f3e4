// SPDX-License-Identifier: Apache-2.0

package session

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
)

// lingering is how long the output of a command that has ended is read on: what it started may have it too. It is cut then, and
// standard error says so.
const lingering = 5 * time.Second

// Direct makes a command that does what another does with a process less, and ends with ctx; nil if there is none.
type Direct func(ctx context.Context, argv []string) *exec.Cmd

// Serve is the far end: it runs what is asked for until the stream ends, of which it kills what runs then. Commands have this
// process's environment, but for what direct, which may be nil, gives them.
func Serve(in io.Reader, out io.Writer, direct Direct) error {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	host, err := ssh.NewSignerFromKey(key)
	if err != nil {
		return err
	}
	config := &ssh.ServerConfig{NoClientAuth: true}
	config.AddHostKey(host)
	conn, channels, requests, err := ssh.NewServerConn(&stream{in, out}, config)
	if err != nil {
		return fmt.Errorf("serve a session: %w", err)
	}
	go ssh.DiscardRequests(requests)
	ctx, stop := context.WithCancel(context.Background())
	var running sync.WaitGroup
	defer running.Wait()
	defer stop()
	for c := range channels {
		if c.ChannelType() != "session" {
			_ = c.Reject(ssh.UnknownChannelType, "there are but sessions")
			continue
		}
		channel, requests, err := c.Accept()
		if err != nil {
			continue // the stream ends
		}
		running.Go(func() { attend(ctx, channel, requests, direct) })
	}
	if err := conn.Wait(); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// attend runs the one command of a channel.
func attend(ctx context.Context, channel ssh.Channel, requests <-chan *ssh.Request, direct Direct) {
	defer channel.Close()
	for r := range requests {
		if r.Type != "exec" {
			_ = r.Reply(false, nil)
			continue
		}
		go ssh.DiscardRequests(requests)
		cmd, err := begin(ctx, r.Payload, channel, direct)
		if err != nil {
			_, _ = fmt.Fprintln(channel.Stderr(), err)
		}
		_ = r.Reply(err == nil, nil)
		if err == nil {
			ended := cmd.Wait()
			if errors.Is(ended, exec.ErrWaitDelay) {
				_, _ = fmt.Fprintf(channel.Stderr(), "what %s started holds its output, of which more may come than was read\n", cmd.Args[0])
			}
			_, _ = channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{status(ended)}))
		}
		return
	}
}

// begin starts what a request asks for.
func begin(ctx context.Context, payload []byte, channel ssh.Channel, direct Direct) (*exec.Cmd, error) {
	argv, err := command(payload)
	if err != nil {
		return nil, err
	}
	if direct != nil {
		if cmd := direct(ctx, argv); cmd != nil && start(cmd, channel) == nil {
			return cmd, nil
		}
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...) //nolint:gosec // to run commands is what it is for
	return cmd, start(cmd, channel)
}

// command decodes a request: the command of RFC 4254 is a shell's line, ours the JSON of an argv.
func command(payload []byte) ([]string, error) {
	var line struct{ Command string }
	if err := ssh.Unmarshal(payload, &line); err != nil {
		return nil, err
	}
	var argv []string
	if err := json.Unmarshal([]byte(line.Command), &argv); err != nil {
		return nil, err
	}
	if len(argv) == 0 {
		return nil, errors.New("no command is given")
	}
	return argv, nil
}

// start starts a command whose input is the channel's, of which nobody waits for the end.
func start(cmd *exec.Cmd, channel ssh.Channel) error {
	cmd.Stdout, cmd.Stderr, cmd.WaitDelay = channel, channel.Stderr(), lingering
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() {
		_, _ = io.Copy(in, channel)
		in.Close()
	}()
	return nil
}

// status is a command's exit code, as a shell and container runtimes give it.
func status(err error) uint32 {
	exit := (*exec.ExitError)(nil)
	if !errors.As(err, &exit) {
		return 0 // or its output was held open by others
	}
	if s, ok := exit.Sys().(syscall.WaitStatus); ok && s.Signaled() {
		return 128 + uint32(s.Signal())
	}
	return uint32(exit.ExitCode())
}

// stream is a net.Conn of what a process reads and writes. It ends with the process.
type stream struct {
	io.Reader
	io.Writer
}

func (*stream) Close() error                     { return nil }
func (*stream) LocalAddr() net.Addr              { return &net.UnixAddr{} }
func (*stream) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (*stream) SetDeadline(time.Time) error      { return nil }
func (*stream) SetReadDeadline(time.Time) error  { return nil }
func (*stream) SetWriteDeadline(time.Time) error { return nil }
