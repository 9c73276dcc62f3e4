// SPDX-License-Identifier: Apache-2.0

package zds

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/zds/zdsapi"
)

// maxConns is how many proxies may be connected: two while one replaces the other, and some that have not been missed yet.
const maxConns = 8

// maxPath is the longest path of a Unix socket that the kernel takes.
const maxPath = 107

// ErrNoZtunnel says that no proxy is connected that could serve a pod.
var ErrNoZtunnel = errors.New("no ztunnel connection")

// Entry is a pod that exists. Without NS the proxy is told to keep the pod if it serves it.
type Entry struct {
	Workload
	NS *netns.NS // stays the agent's
}

// ServerConfig is the agent's end.
type ServerConfig struct {
	Path string
	// Mode is the socket's; 0 means 0600.
	Mode fs.FileMode
	// Snapshot lists every pod that is enrolled. It is called for each proxy that connects, from that one's goroutine; Add
	// and Del calls that come later reach the proxy after the list.
	Snapshot func() []Entry
	// AcceptsPerSecond limits new connections; 0 means 5.
	AcceptsPerSecond int
	// MessageTimeout is how long a proxy may take to say hello, to accept a packet or to acknowledge it; 0 means 5 s.
	MessageTimeout time.Duration
	// Changed, if set, is called after a proxy came or went. It must not block.
	Changed func()
	Log     *slog.Logger
}

// Server is the agent's end of the conversations: two while one proxy replaces another.
type Server struct {
	cfg ServerConfig

	mu    sync.Mutex
	conns []*conn // guarded by mu; in the order in which they said hello
}

// NewServer makes a Server; the caller runs it.
func NewServer(cfg ServerConfig) *Server {
	if cfg.Mode == 0 {
		cfg.Mode = 0o600
	}
	if cfg.AcceptsPerSecond == 0 {
		cfg.AcceptsPerSecond = 5
	}
	if cfg.MessageTimeout == 0 {
		cfg.MessageTimeout = messageTimeout
	}
	if cfg.Changed == nil {
		cfg.Changed = func() {}
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Server{cfg: cfg}
}

// Run listens until ctx ends, then removes the socket and closes every conversation, in this order: a proxy that notices
// looks for another agent at once. It returns an error only if it cannot listen. A socket that an earlier agent left behind is
// replaced.
func (s *Server) Run(ctx context.Context) error {
	l, mine, err := s.listen(ctx)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", s.cfg.Path, err)
	}
	talk, hangUp := context.WithCancel(context.WithoutCancel(ctx))
	var conns sync.WaitGroup
	defer conns.Wait()
	defer hangUp()
	defer s.remove(mine)
	defer l.Close()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	recent := make([]time.Time, s.cfg.AcceptsPerSecond)
	for i := 0; ; i = (i + 1) % len(recent) {
		if wait := time.Until(recent[i].Add(time.Second)); wait > 0 && !sleep(ctx, wait) {
			return nil
		}
		raw, err := l.AcceptUnix()
		if ctx.Err() != nil {
			if err == nil {
				raw.Close()
			}
			return nil
		}
		recent[i] = time.Now()
		if err != nil { // out of descriptors, say: the limit above keeps this from spinning
			s.cfg.Log.Warn("accept a ztunnel", "socket", s.cfg.Path, "error", err)
			continue
		}
		conns.Go(func() { s.serve(talk, raw) })
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// listen also returns what the socket's file looks like, to know it again.
func (s *Server) listen(ctx context.Context) (*net.UnixListener, fs.FileInfo, error) {
	if len(s.cfg.Path) > maxPath {
		return nil, nil, fmt.Errorf("a socket's path has at most %d bytes, this one %d", maxPath, len(s.cfg.Path))
	}
	if err := os.MkdirAll(filepath.Dir(s.cfg.Path), 0o755); err != nil {
		return nil, nil, err
	}
	switch info, err := os.Lstat(s.cfg.Path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, nil, err
	case info.Mode().Type() != fs.ModeSocket:
		return nil, nil, errors.New("the file there is not a socket")
	default:
		if err := os.Remove(s.cfg.Path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, err
		}
	}
	// The mode is set before the name exists, so that nobody connects meanwhile.
	lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error {
		var err error
		if cerr := rc.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), uint32(s.cfg.Mode.Perm())) }); cerr != nil {
			return cerr
		}
		return err
	}}
	raw, err := lc.Listen(ctx, "unixpacket", s.cfg.Path)
	if err != nil {
		return nil, nil, err
	}
	l := raw.(*net.UnixListener)
	l.SetUnlinkOnClose(false) // by then it may be another agent's
	err = os.Chmod(s.cfg.Path, s.cfg.Mode.Perm())
	if err != nil {
		l.Close()
		return nil, nil, err
	}
	info, err := os.Lstat(s.cfg.Path)
	if err != nil {
		l.Close()
		return nil, nil, err
	}
	return l, info, nil
}

func (s *Server) remove(mine fs.FileInfo) {
	if info, err := os.Lstat(s.cfg.Path); err == nil && os.SameFile(info, mine) {
		_ = os.Remove(s.cfg.Path)
	}
}

// Add has the newest proxy serve w in ns and returns its answer. ns stays the caller's.
func (s *Server) Add(ctx context.Context, w Workload, ns *netns.NS) error {
	s.mu.Lock()
	var c *conn
	if n := len(s.conns); n > 0 {
		c = s.conns[n-1]
	}
	s.mu.Unlock()
	if c == nil {
		return fmt.Errorf("add %s: %w", w.UID, ErrNoZtunnel)
	}
	dup, err := ns.Dup()
	if err != nil {
		return fmt.Errorf("add %s: %w", w.UID, err)
	}
	if err := c.do(ctx, addRequest(w), dup); err != nil {
		return fmt.Errorf("add %s: %w", w.UID, err)
	}
	return nil
}

// Del has every proxy end its service of the pod. A proxy that goes away meanwhile serves nothing any more, so that is no
// error.
func (s *Server) Del(ctx context.Context, uid string) error {
	s.mu.Lock()
	conns := append([]*conn(nil), s.conns...)
	s.mu.Unlock()
	errs := make([]error, len(conns))
	var wg sync.WaitGroup
	for i, c := range conns {
		wg.Go(func() {
			req := &zdsapi.WorkloadRequest{Payload: &zdsapi.WorkloadRequest_Del{Del: &zdsapi.DelWorkload{Uid: uid}}}
			if err := c.do(ctx, req, nil); err != nil && !errors.Is(err, errGone) {
				errs[i] = fmt.Errorf("del %s: %w", uid, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// Connected is how many proxies said hello and are still there.
func (s *Server) Connected() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

func addRequest(w Workload) *zdsapi.WorkloadRequest {
	return &zdsapi.WorkloadRequest{Payload: &zdsapi.WorkloadRequest_Add{Add: &zdsapi.AddWorkload{
		Uid: w.UID, WorkloadInfo: &zdsapi.WorkloadInfo{Name: w.Name, Namespace: w.Namespace, ServiceAccount: w.ServiceAccount},
	}}}
}
