// SPDX-License-Identifier: Apache-2.0

package zds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/ambientlab/ambientlab/dataplane/netns"
	"github.com/ambientlab/ambientlab/dataplane/zds/zdsapi"
)

// Handler does, in the proxy, what the agent asks for. Calls come one at a time; an error is sent to the agent as that
// request's acknowledgement and does not end the conversation.
type Handler interface {
	// Add starts to serve w, whose namespace is ns: the Handler's to close, also if it returns an error. A pod that is
	// served in that namespace already stays as it is; one that is served in another moves.
	Add(ctx context.Context, w Workload, ns *netns.NS) error
	// Keep says, before SnapshotSent, that the pod still exists.
	Keep(uid string) error
	// Del ends the pod's service. Before SnapshotSent it merely takes back that the pod was named.
	Del(uid string) error
	// SnapshotSent says that every pod was named since the conversation began; what was not is gone.
	SnapshotSent() error
	// Disconnected says that the conversation ended. Pods are served on; the next conversation begins with a new snapshot.
	Disconnected()
}

// ClientConfig is the proxy's end. Zero durations mean the defaults that are named.
type ClientConfig struct {
	Path    string
	Handler Handler
	// BackoffMin and BackoffMax bound the wait between attempts to connect: 10 ms doubling to 15 s.
	BackoffMin, BackoffMax time.Duration
	Log                    *slog.Logger
}

// Client is the proxy's end of the conversation.
type Client struct{ cfg ClientConfig }

// NewClient makes a Client; the caller runs it.
func NewClient(cfg ClientConfig) *Client {
	if cfg.BackoffMin == 0 {
		cfg.BackoffMin = 10 * time.Millisecond
	}
	if cfg.BackoffMax == 0 {
		cfg.BackoffMax = 15 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.Default()
	}
	return &Client{cfg: cfg}
}

// Run connects, again and again, until ctx ends, then returns nil. An agent that is not there is waited for: the appearance
// of its socket ends the wait. Attempts that fail are further and further apart. The file system is watched only while nobody
// talks, as a machine has few inotify instances: after a conversation that failed the agent is looked for within a second.
func (c *Client) Run(ctx context.Context) error {
	backoff := c.cfg.BackoffMin
	for said := false; ctx.Err() == nil; {
		w, err := newWatch(c.cfg.Path)
		if err != nil {
			c.cfg.Log.Warn("no events of the file system; trying again by time alone", "error", err)
		}
		conn, err := c.dial(ctx)
		if err == nil {
			w.close()
			worked, err := c.converse(ctx, conn)
			if ctx.Err() == nil {
				c.cfg.Log.Warn("conversation with the CNI agent ended", "socket", c.cfg.Path, "error", err)
			}
			said = false
			if worked {
				backoff = c.cfg.BackoffMin
			}
			w = nil // it may be back already: look soon
			if worked && errors.Is(err, errHungUp) {
				c.pause(ctx, nil, lookAgain)
				continue
			}
		} else if !said && ctx.Err() == nil {
			c.cfg.Log.Warn("waiting for the CNI agent", "socket", c.cfg.Path, "error", err)
			said = true
		}
		if c.pause(ctx, w, backoff) {
			backoff = c.cfg.BackoffMin
		} else {
			backoff = min(2*backoff, c.cfg.BackoffMax)
		}
	}
	return nil
}

func (c *Client) dial(ctx context.Context) (*net.UnixConn, error) {
	var d net.Dialer
	raw, err := d.DialContext(ctx, "unixpacket", c.cfg.Path)
	if err != nil {
		return nil, err
	}
	return raw.(*net.UnixConn), nil
}

// pause waits for w, or for a part of most, or until ctx ends, and closes w; without w, not for long. It reports whether a socket appeared.
func (c *Client) pause(ctx context.Context, w *watch, most time.Duration) bool {
	most -= rand.N(most/2 + 1)
	if w != nil {
		defer w.close()
		return w.wait(ctx, most)
	}
	t := time.NewTimer(min(most, unwatched))
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
	return false
}

// lookAgain is how long an agent that has hung up is left alone.
const lookAgain = 10 * time.Millisecond

// unwatched is how long an agent's socket that cannot be watched is left alone at most.
const unwatched = time.Second

var errHungUp = errors.New("the agent hung up")

// converse holds one conversation, whose end is the error. It reports whether it came as far as the snapshot.
func (c *Client) converse(ctx context.Context, conn *net.UnixConn) (worked bool, err error) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	defer c.cfg.Handler.Disconnected()
	if err := send(conn, &zdsapi.ZdsHello{Version: zdsapi.Version_V1}, -1); err != nil {
		return false, fmt.Errorf("say hello: %w", err)
	}
	for {
		var req zdsapi.WorkloadRequest
		fds, err := receive(conn, &req)
		if errors.Is(err, io.EOF) {
			return worked, errHungUp
		}
		if err != nil {
			return worked, fmt.Errorf("receive: %w", err)
		}
		outcome, err := c.dispatch(ctx, &req, fds, &worked)
		if err != nil {
			return worked, err
		}
		if err := send(conn, acknowledge(outcome), -1); err != nil {
			return worked, fmt.Errorf("acknowledge: %w", err)
		}
	}
}

// dispatch has the Handler do req. outcome is for the agent; err ends the conversation.
func (c *Client) dispatch(ctx context.Context, req *zdsapi.WorkloadRequest, fds []int, snapshot *bool) (outcome, err error) {
	add, isAdd := req.GetPayload().(*zdsapi.WorkloadRequest_Add)
	want := 0
	if isAdd {
		want = 1
	}
	if len(fds) != want {
		closeAll(fds)
		return nil, fmt.Errorf("%w: %d descriptors with %s, want %d", ErrProtocol, len(fds), describe(req), want)
	}
	switch p := req.GetPayload().(type) {
	case *zdsapi.WorkloadRequest_Add:
		return c.add(ctx, add.Add, fds[0]), nil
	case *zdsapi.WorkloadRequest_Keep:
		if *snapshot {
			return nil, fmt.Errorf("%w: keep after the snapshot", ErrProtocol)
		}
		return c.cfg.Handler.Keep(p.Keep.GetUid()), nil
	case *zdsapi.WorkloadRequest_Del:
		return c.cfg.Handler.Del(p.Del.GetUid()), nil
	case *zdsapi.WorkloadRequest_SnapshotSent:
		if *snapshot {
			return nil, fmt.Errorf("%w: a second snapshot", ErrProtocol)
		}
		*snapshot = true
		return c.cfg.Handler.SnapshotSent(), nil
	default:
		return nil, fmt.Errorf("%w: a request of no known kind", ErrProtocol)
	}
}

func (c *Client) add(ctx context.Context, in *zdsapi.AddWorkload, fd int) error {
	ns, err := netns.FromFD(fd)
	if err != nil {
		return err
	}
	info := in.GetWorkloadInfo()
	if in.GetUid() == "" || info == nil {
		ns.Close()
		return errors.New("add: uid and workload_info are required")
	}
	return c.cfg.Handler.Add(ctx, Workload{
		UID: in.GetUid(), Name: info.GetName(), Namespace: info.GetNamespace(), ServiceAccount: info.GetServiceAccount(),
	}, ns)
}

func describe(req *zdsapi.WorkloadRequest) string {
	switch req.GetPayload().(type) {
	case *zdsapi.WorkloadRequest_Add:
		return "add"
	case *zdsapi.WorkloadRequest_Keep:
		return "keep"
	case *zdsapi.WorkloadRequest_Del:
		return "del"
	case *zdsapi.WorkloadRequest_SnapshotSent:
		return "snapshot_sent"
	default:
		return "an unknown request"
	}
}

// acknowledge cuts a long error short: the agent's buffer has an end.
func acknowledge(outcome error) proto.Message {
	ack := &zdsapi.Ack{}
	if outcome != nil {
		const most = maxPacket - 64
		ack.Error = strings.ToValidUTF8(outcome.Error(), "?")
		if len(ack.Error) > most {
			ack.Error = strings.ToValidUTF8(ack.Error[:most], "") + "…"
		}
		if ack.Error == "" {
			ack.Error = "unknown error"
		}
	}
	return &zdsapi.WorkloadResponse{Payload: &zdsapi.WorkloadResponse_Ack{Ack: ack}}
}
