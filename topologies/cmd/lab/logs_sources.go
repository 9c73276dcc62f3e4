// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/labdir"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// logSources is where a lab's logs are, as files.
type logSources interface {
	all() map[string]string    // the files, by source; the lab's, or those that read will fill
	pod(ref lab.PodRef) string // that of a pod
	stamped() bool             // whether each line has a time of the cluster's in front
	gone() bool                // whether the lab is, as far as the files do not tell
	close()

	// read sees to it that the files of these sources have what there is, and with follow what comes until ctx ends.
	read(ctx context.Context, sources []string, since time.Time, follow bool) error
}

func (a *app) logSources(ctx context.Context) (logSources, error) {
	s, err := a.find(ctx)
	if err != nil {
		return nil, err
	}
	if s.driver == driverNetns {
		return labLogs(s.dir), nil
	}
	l, err := a.attachTo(ctx, s)
	if err != nil {
		return nil, err
	}
	d, ok := l.Driver.(lab.LogCopier)
	if !ok {
		return nil, fmt.Errorf("the driver of lab %s has no logs of pods", s.name)
	}
	dir, err := os.MkdirTemp("", "ambientlab-logs-")
	if err != nil {
		return nil, err
	}
	return &clusterLogs{from: d, ask: ctx, dir: dir, begun: map[string]bool{}, pods: map[string]lab.PodRef{}}, nil
}

// labLogs are those of a lab of namespaces, whose directory has them.
type labLogs labdir.Dir

func (d labLogs) all() map[string]string {
	paths := map[string]string{}
	files, _ := filepath.Glob(labdir.Dir(d).Log("*")) // the pattern is good
	for _, f := range files {
		paths[sourceName(strings.TrimSuffix(filepath.Base(f), ".log"))] = f
	}
	return paths
}

func (d labLogs) pod(ref lab.PodRef) string { return labdir.Dir(d).PodLog(ref.Namespace, ref.Name) }
func (labLogs) stamped() bool               { return false }
func (labLogs) gone() bool                  { return false }
func (labLogs) close()                      {}

func (labLogs) read(context.Context, []string, time.Time, bool) error { return nil }

// sourceName makes "shop/web" of the name of a pod's log; daemons' are called as they are.
func sourceName(file string) string {
	first, rest, dotted := strings.Cut(file, ".")
	if !dotted || first == lab.DaemonZtunnel || first == lab.DaemonCNIAgent || strings.HasPrefix(first, "external") {
		return file
	}
	return first + "/" + rest
}

// clusterLogs are copies of what an API server hands out.
type clusterLogs struct {
	from lab.LogCopier
	ask  context.Context // of the command
	dir  string
	stop context.CancelFunc // nil before the first copy

	copying sync.WaitGroup
	begun   map[string]bool       // by source
	pods    map[string]lab.PodRef // by source

	mu      sync.Mutex
	running int   // guarded by mu
	err     error // guarded by mu; the first
}

func (c *clusterLogs) path(source string) string {
	return filepath.Join(c.dir, strings.ReplaceAll(source, "/", ".")+".log")
}

func (c *clusterLogs) all() map[string]string {
	paths := map[string]string{}
	sources, err := c.from.LogSources(c.ask)
	c.failed(err)
	for _, s := range sources {
		c.pods[s.Name], paths[s.Name] = s.Pod, c.path(s.Name)
	}
	return paths
}

func (c *clusterLogs) pod(ref lab.PodRef) string {
	c.pods[ref.String()] = ref
	return c.path(ref.String())
}

func (c *clusterLogs) stamped() bool { return true }

// gone is when nothing is copied any more.
func (c *clusterLogs) gone() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.running == 0
}

func (c *clusterLogs) close() {
	if c.stop != nil {
		c.stop()
	}
	c.copying.Wait()
	_ = os.RemoveAll(c.dir) // copies in the temporary directory
}

func (c *clusterLogs) failed(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
}

// read copies everything there is before it returns, or goes on with copying.
func (c *clusterLogs) read(ctx context.Context, sources []string, since time.Time, follow bool) error {
	if c.stop == nil {
		ctx, c.stop = context.WithCancel(ctx)
		c.ask = ctx
	}
	var g errgroup.Group
	var fresh []*logFile
	for _, s := range sources {
		if c.begun[s] {
			continue
		}
		c.begun[s] = true
		f, err := os.OpenFile(c.path(s), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return err
		}
		l := &logFile{File: f, pod: c.pods[s], next: since}
		fresh = append(fresh, l)
		g.Go(func() error { return c.from.CopyLog(c.ask, l.pod, lab.LogOptions{Since: since}, l) })
	}
	err := g.Wait()
	for _, l := range fresh {
		if follow && err == nil {
			c.follow(l)
		} else {
			err = errors.Join(err, l.Close())
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return errors.Join(err, c.err)
}

// follow goes on with what comes after the lines that are there, all of which can be put in order.
func (c *clusterLogs) follow(l *logFile) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running++
	c.copying.Go(func() {
		err := c.from.CopyLog(c.ask, l.pod, lab.LogOptions{Since: l.next, Follow: true}, l)
		c.failed(errors.Join(err, l.Close()))
		c.mu.Lock()
		defer c.mu.Unlock()
		c.running--
	})
}

// logFile is the copy of one log.
type logFile struct {
	*os.File
	pod  lab.PodRef
	next time.Time // no line that is still to come is older
}

func (l *logFile) Write(line []byte) (int, error) {
	if at, ok := lineTime(line); ok {
		l.next = at.Add(1)
	}
	return l.File.Write(line)
}
