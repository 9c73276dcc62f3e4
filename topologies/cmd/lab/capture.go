// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/labdir"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/wire"
	"github.com/ambientlab/ambientlab/topologies/workload"
)

type captureOptions struct {
	file         string // "-" is stdout
	wire         bool
	filter, intf string
	length       time.Duration // 0: until Ctrl-C
	call         string        // a URL; the recording ends with its call
	secrets      bool
	secretsFile  string
}

func (a *app) captureCommand() *cobra.Command {
	var o captureOptions
	c := &cobra.Command{
		Use: "capture POD|node/NAME|external/NAME...", Short: "Record packets of a pod, a node's wire or an external host as pcapng",
		Long: "Records packets, until Ctrl-C, for a time, or around one call, and writes them in order of time as one pcapng file that\n" +
			"Wireshark opens, with an interface for each place. A pod's own namespace shows plain text before capture and after\n" +
			"it; its node's wire (--wire, or node/NAME) shows what others could read.\n\n" +
			"A lab brought up with --tls-keys, or a topology with debug.tlsKeys: true, logs the secrets of the mesh's TLS\n" +
			"connections; --secrets puts them into the file, and Wireshark shows HTTP/2 and what is tunnelled in it. Whoever gets\n" +
			"such a file reads the traffic. What a filter is:\n" + wire.FilterSyntax,
		Example: "  lab capture web --wire --call http://cart\n  lab capture web --filter 'port 15008' --secrets --for 10s -w web.pcapng\n" +
			"  lab capture node/node1 -w - | wireshark -k -i -",
		Args: cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if err := o.check(args); err != nil {
				return mistake(c, err)
			}
			return a.capture(c.Context(), args, o)
		},
	}
	f := c.Flags()
	f.StringVarP(&o.file, "write", "w", "", "the file; - is standard output, as the packets come (default: the first place's name with .pcapng)")
	f.BoolVar(&o.wire, "wire", false, "record on the nodes of the pods too")
	f.StringVar(&o.filter, "filter", "", "packets to record")
	f.StringVar(&o.intf, "interface", "", "the interface to record on (default: all)")
	f.DurationVar(&o.length, "for", 0, "how long (default: until Ctrl-C)")
	f.StringVar(&o.call, "call", "", "make one call of this `URL` from the first pod, and end with it")
	f.BoolVar(&o.secrets, "secrets", false, "put the TLS secrets of the mesh into the file")
	f.StringVar(&o.secretsFile, "secrets-file", "", "put the TLS secrets of the mesh into a `file` of their own")
	return c
}

func (o *captureOptions) check(places []string) error {
	_, err := wire.ParseFilter(o.filter)
	errs := []error{err}
	if o.file == "-" && (len(places) > 1 || o.wire) {
		errs = append(errs, errors.New("-w -: several places are put in order when the recording ends, so they need a file"))
	}
	if o.file == "-" && o.secrets {
		errs = append(errs, errors.New("--secrets: they go in front of the packets, so they need a file; --secrets-file goes with -w -"))
	}
	if o.file == "" {
		o.file = strings.ReplaceAll(places[0], "/", ".") + ".pcapng"
	}
	return errors.Join(errs...)
}

// place is one recording.
type place struct {
	name    string
	target  lab.Target
	packets *os.File
	capture lab.Capture
	drops   int
}

func (a *app) capture(ctx context.Context, names []string, o captureOptions) (err error) {
	l, err := a.attach(ctx)
	if err != nil {
		return err
	}
	if why := l.Capabilities().Missing(lab.CapTLSKeys); (o.secrets || o.secretsFile != "") && len(why) > 0 {
		return fmt.Errorf("this lab logs no TLS secrets, as labs of namespaces do after `lab up --tls-keys`: %s", strings.Join(why, ", "))
	}
	if (o.secrets || o.secretsFile != "") && !l.Spec.Debug.TLSKeys {
		return errors.New("this lab logs no TLS secrets: bring it up with `lab up --tls-keys`, or a topology that says debug: {tlsKeys: true}")
	}
	places, err := o.places(ctx, l, names)
	if err != nil {
		return err
	}
	defer func() {
		for _, p := range places {
			err = errors.Join(err, p.drop(context.WithoutCancel(ctx)))
		}
	}()
	if err := a.record(ctx, l, places, o); err != nil {
		return err
	}
	secrets, err := o.read(labdir.Dir(l.Dir)) // only now those of the recorded connections are there
	if err != nil {
		return err
	}
	return a.deliver(places, o, secrets)
}

// places are where to record: those named, and the nodes of the pods among them.
func (o *captureOptions) places(ctx context.Context, l *lab.Lab, names []string) ([]*place, error) {
	var places []*place
	add := func(t lab.Target) {
		name := strings.TrimPrefix(strings.TrimPrefix(t.String(), "pod "), "node ")
		if !slices.ContainsFunc(places, func(p *place) bool { return p.name == name }) {
			t.Filter, t.Interface = o.filter, o.intf
			places = append(places, &place{name: name, target: t})
		}
	}
	for _, n := range names {
		t, err := findTarget(ctx, l, n)
		if err != nil {
			return nil, err
		}
		add(t)
		if o.wire && !t.Pod.IsZero() {
			info, err := l.Find(ctx, t.Pod)
			if err != nil {
				return nil, err
			}
			add(lab.Target{Node: info.Node})
		}
	}
	if o.call != "" && places[0].target.Pod.IsZero() {
		return nil, usageError{err: fmt.Errorf("--call: %s is no pod", names[0]), command: "capture"}
	}
	return places, nil
}

// record starts all recordings, waits for their end, and stops them.
func (a *app) record(ctx context.Context, l *lab.Lab, places []*place, o captureOptions) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var names []string
	for _, p := range places {
		if err := a.start(ctx, l, p, o, cancel); err != nil {
			return err
		}
		names = append(names, p.name)
	}
	a.progress("recording " + strings.Join(names, ", ") + o.until())
	failed := o.wait(ctx, l, places[0].target.Pod)
	for _, p := range places {
		if err := p.stop(context.WithoutCancel(ctx)); err != nil {
			failed = errors.Join(failed, fmt.Errorf("record %s: %w", p.name, err))
		}
	}
	return failed
}

func (o *captureOptions) until() string {
	switch {
	case o.call != "":
		return " during a call of " + o.call
	case o.length > 0:
		return fmt.Sprintf(" for %s; Ctrl-C ends it", o.length)
	}
	return "; Ctrl-C ends it"
}

// start starts one recording, to a file that is gone with it, or to stdout.
func (a *app) start(ctx context.Context, l *lab.Lab, p *place, o captureOptions, cancel context.CancelCauseFunc) (err error) {
	t := p.target
	if o.file == "-" {
		t.Stream = &endsWithReader{a.stdout, cancel}
	} else {
		if p.packets, err = os.CreateTemp("", "ambientlab-*.pcapng"); err != nil {
			return fmt.Errorf("record %s: %w", p.name, err)
		}
		t.Stream = p.packets
	}
	p.capture, err = l.Capture(ctx, t)
	return err
}

// endsWithReader ends the recording when nobody reads it any more.
type endsWithReader struct {
	io.Writer
	cancel context.CancelCauseFunc
}

func (w *endsWithReader) Write(b []byte) (int, error) {
	n, err := w.Writer.Write(b)
	if err != nil {
		w.cancel(err)
	}
	return n, err
}

// wait returns when the recording has to end.
func (o *captureOptions) wait(ctx context.Context, l *lab.Lab, pod lab.PodRef) error {
	if o.call != "" {
		res, err := l.Call(ctx, pod, o.call, workload.Options{})
		if err == nil && res.OK == 0 {
			err = fmt.Errorf("call %s: %s", o.call, res.First().Error)
		}
		return err
	}
	if o.length > 0 {
		timer := time.NewTimer(o.length)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		return nil
	}
	<-ctx.Done()
	return nil
}

func (p *place) stop(ctx context.Context) (err error) {
	const drain = 10 * time.Second
	ctx, cancel := context.WithTimeout(ctx, drain)
	defer cancel()
	_, p.drops, err = p.capture.Stop(ctx)
	p.capture = nil
	return err
}

// drop gives back what a recording holds.
func (p *place) drop(ctx context.Context) error {
	var err error
	if p.capture != nil {
		err = p.stop(ctx)
	}
	if p.packets != nil {
		err = errors.Join(err, p.packets.Close(), os.Remove(p.packets.Name()))
	}
	return err
}

// captured is what the command says in the end.
type captured struct {
	File    string   `json:"file"`
	Places  []string `json:"places"`
	Packets int      `json:"packets"`
	Drops   int      `json:"drops"` // lost before they could be recorded: absence of a packet then proves nothing
	Secrets string   `json:"secrets,omitempty"`
}

// deliver writes the files.
func (a *app) deliver(places []*place, o captureOptions, secrets []byte) error {
	c := captured{File: o.file}
	var in []wire.Recording
	for _, p := range places {
		c.Places = append(c.Places, p.name)
		c.Drops += p.drops
		if p.packets == nil {
			continue
		}
		if _, err := p.packets.Seek(0, io.SeekStart); err != nil {
			return fmt.Errorf("read recording: %w", err)
		}
		in = append(in, wire.Recording{Name: p.name, R: p.packets})
	}
	if o.secretsFile != "" {
		if err := os.WriteFile(o.secretsFile, secrets, 0o600); err != nil {
			return fmt.Errorf("write secrets: %w", err)
		}
		c.Secrets = o.secretsFile
	}
	if o.secrets {
		c.Secrets = o.file
	} else {
		secrets = nil
	}
	if o.file == "-" {
		a.progress(fmt.Sprintf("the kernel dropped %d packets", c.Drops))
		return nil
	}
	if err := c.merge(secrets, in); err != nil {
		return err
	}
	return a.print(c, func() {
		fmt.Fprintf(a.stdout, "%s: %d packets of %s, %d dropped by the kernel\n", c.File, c.Packets, strings.Join(c.Places, ", "), c.Drops)
		if c.Secrets != "" {
			fmt.Fprintf(a.stdout, "%s has the secrets of the mesh's TLS connections: whoever has it reads the traffic\n", c.Secrets)
		}
	})
}

// merge writes the recordings into the file; one with secrets is for its owner's eyes.
func (c *captured) merge(secrets []byte, in []wire.Recording) error {
	mode := os.FileMode(0o644)
	if len(secrets) > 0 {
		mode = 0o600
	}
	out, err := os.OpenFile(c.File, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	if err != nil {
		return fmt.Errorf("write recording: %w", err)
	}
	c.Packets, err = wire.Merge(out, secrets, in...)
	return errors.Join(err, out.Close())
}

// read reads the secrets that the lab's daemons logged. Connections of the recording may be older than it, so all are wanted.
func (o *captureOptions) read(dir labdir.Dir) ([]byte, error) {
	if !o.secrets && o.secretsFile == "" {
		return nil, nil
	}
	files, err := filepath.Glob(filepath.Join(dir.TLSKeys(), "*.log"))
	if err != nil {
		return nil, fmt.Errorf("find secrets: %w", err)
	}
	var all bytes.Buffer
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			return nil, fmt.Errorf("read secrets: %w", err)
		}
		all.Write(text)
	}
	return all.Bytes(), nil
}
