// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/httpstream" //nolint:staticcheck // client-go speaks in its terms
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"

	"github.com/ambientlab/ambientlab/topologies/lab"
)

// idleFor is how long a connection to a daemon is kept for the next request.
const idleFor = 30 * time.Second

// reasonWithin is how long the end of a stream waits for its reason.
const reasonWithin = 200 * time.Millisecond

// forwards reach into pods' loopback through the API server. There is one forwarding connection per pod, kept open; every
// connection to a port is a stream of it.
type forwards struct {
	s *stand

	mu sync.Mutex
	by map[types.UID]*forward // guarded by mu
}

func newForwards(s *stand) *forwards { return &forwards{s: s, by: map[types.UID]*forward{}} }

// to is the way to a pod's ports: the port of a request's URL counts, its host does not.
func (fs *forwards) to(p *corev1.Pod) http.RoundTripper {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if f := fs.by[p.UID]; f != nil {
		return f.http
	}
	for uid, f := range fs.by { // of pods that are gone
		if now := fs.s.pods.get(f.ref()); now == nil || now.UID != uid {
			f.close()
			delete(fs.by, uid)
		}
	}
	f := &forward{api: fs.s.api, namespace: p.Namespace, pod: p.Name}
	f.http = &http.Transport{DialContext: f.dialAddr, DisableCompression: true, IdleConnTimeout: idleFor, MaxIdleConnsPerHost: 4}
	fs.by[p.UID] = f
	return f.http
}

func (fs *forwards) close() {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for uid, f := range fs.by {
		f.close()
		delete(fs.by, uid)
	}
}

// forward is the way to one pod.
type forward struct {
	api            *client
	namespace, pod string
	http           *http.Transport

	mu      sync.Mutex
	conn    httpstream.Connection // guarded by mu; nil until the first use, and after the end
	request int                   // guarded by mu
}

func (f *forward) close() {
	f.http.CloseIdleConnections()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.conn != nil {
		f.conn.Close()
		f.conn = nil
	}
}

// connection is the open one, or a new one.
func (f *forward) connection() (httpstream.Connection, int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.request++
	if f.conn != nil {
		select {
		case <-f.conn.CloseChan():
			f.conn = nil
		default:
			return f.conn, f.request, nil
		}
	}
	d, err := f.api.dialer(f.namespace, f.pod)
	if err != nil {
		return nil, 0, err
	}
	f.conn, _, err = d.Dial(portforward.PortForwardProtocolV1Name)
	return f.conn, f.request, err
}

// dialer upgrades over a WebSocket, or over SPDY where the server has none.
func (c *client) dialer(namespace, pod string) (httpstream.Dialer, error) {
	at := c.podURL(namespace, pod, "portforward")
	transport, upgrader, err := spdy.RoundTripperFor(c.config)
	if err != nil {
		return nil, err
	}
	old := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, at)
	tunnel, err := portforward.NewSPDYOverWebsocketDialerWithLogger(quiet, at, c.config)
	if err != nil {
		return nil, err
	}
	return portforward.NewFallbackDialer(tunnel, old, upgradeRefused), nil
}

func upgradeRefused(err error) bool {
	return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
}

func (c *client) podURL(namespace, pod, sub string) *url.URL {
	return c.core.CoreV1().RESTClient().Post().Resource("pods").Namespace(namespace).Name(pod).SubResource(sub).URL()
}

func (f *forward) dialAddr(ctx context.Context, _, addr string) (net.Conn, error) {
	_, text, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, err
	}
	if _, err := strconv.ParseUint(text, 10, 16); err != nil {
		return nil, fmt.Errorf("dial pod %s: %w", f.pod, err)
	}
	type result struct {
		c   net.Conn
		err error
	}
	done := make(chan result, 1)
	go func() { // client-go's dialers heed no context
		c, err := f.dial(text)
		done <- result{c, err}
	}()
	select {
	case r := <-done:
		if r.err != nil {
			return nil, fmt.Errorf("dial port %s of pod %s/%s: %w", text, f.namespace, f.pod, r.err)
		}
		return r.c, nil
	case <-ctx.Done():
		go func() {
			if r := <-done; r.c != nil {
				r.c.Close()
			}
		}()
		return nil, ctx.Err()
	}
}

// dial opens a pair of streams: one for bytes, one for what kubelet says of them.
func (f *forward) dial(port string) (net.Conn, error) {
	conn, id, err := f.connection()
	if err != nil {
		return nil, err
	}
	header := http.Header{}
	header.Set(corev1.StreamType, corev1.StreamTypeError)
	header.Set(corev1.PortHeader, port)
	header.Set(corev1.PortForwardRequestIDHeader, strconv.Itoa(id))
	said, err := conn.CreateStream(header)
	if err != nil {
		f.drop(conn)
		return nil, err
	}
	said.Close() // only kubelet writes to it
	header.Set(corev1.StreamType, corev1.StreamTypeData)
	data, err := conn.CreateStream(header)
	if err != nil {
		conn.RemoveStreams(said)
		f.drop(conn)
		return nil, err
	}
	c := &streamConn{f: f, conn: conn, data: data, said: said, refused: make(chan error, 1)}
	go c.listen()
	return c, nil
}

// drop forgets a connection that has ended.
func (f *forward) drop(conn httpstream.Connection) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.conn == conn {
		f.conn = nil
	}
	conn.Close()
}

// streamConn is one connection to a port.
type streamConn struct {
	f          *forward
	conn       httpstream.Connection
	data, said httpstream.Stream
	refused    chan error // what kubelet said; closed at the end

	once sync.Once
}

// listen waits for what kubelet has to say; it is nothing if all goes well. After a refusal kubelet may leave the data open.
func (c *streamConn) listen() {
	defer close(c.refused)
	text, err := io.ReadAll(io.LimitReader(c.said, 4096))
	if err == nil && len(text) > 0 {
		c.refused <- errors.New(strings.TrimSpace(string(text)))
		_ = c.data.Reset()
	}
}

func (c *streamConn) Read(p []byte) (int, error) {
	n, err := c.data.Read(p)
	if err != nil {
		select { // kubelet may close the data before it has said why
		case why, ok := <-c.refused:
			if ok {
				err = why
			}
		case <-time.After(reasonWithin):
		}
	}
	return n, err
}

func (c *streamConn) Write(p []byte) (int, error) { return c.data.Write(p) }

func (c *streamConn) Close() error {
	c.once.Do(func() {
		_ = c.data.Close()
		_ = c.data.Reset()
		c.conn.RemoveStreams(c.data, c.said)
	})
	return nil
}

func (f *forward) ref() lab.PodRef { return lab.PodRef{Namespace: f.namespace, Name: f.pod} }

// Streams have no addresses of their own, and no deadlines: whoever waits closes them.
func (c *streamConn) LocalAddr() net.Addr              { return streamAddr(c.f.ref().String()) }
func (c *streamConn) RemoteAddr() net.Addr             { return streamAddr(c.f.ref().String()) }
func (c *streamConn) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (c *streamConn) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (c *streamConn) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }

type streamAddr string

func (streamAddr) Network() string  { return "forward" }
func (a streamAddr) String() string { return string(a) }
