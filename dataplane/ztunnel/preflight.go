// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"

	"github.com/ambientlab/ambientlab/dataplane/netns"
)

// preflight tries in this process's own namespace what every pod will need: entering a namespace, marking a socket and
// binding an address that is not local. Without them no pod could be served, and the first pod is a bad time to learn it. It
// returns whether clients' addresses are kept.
func preflight(ctx context.Context, own *netns.NS, mark uint32, source SourceMode, log *slog.Logger) (keepSource bool, err error) {
	err = own.Do(func() error { return nil })
	if errors.Is(err, os.ErrPermission) {
		return false, fmt.Errorf("%w: entering a pod's network namespace needs the capability SYS_ADMIN", err)
	}
	if err != nil {
		return false, err
	}
	try := func(o netns.SocketOptions) error {
		l, err := own.ListenTCP(ctx, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0), o)
		if err != nil {
			return err
		}
		return l.Close()
	}
	if err := try(netns.SocketOptions{Mark: mark}); err != nil {
		return false, fmt.Errorf("%w: marking the proxy's packets needs the capability NET_ADMIN", err)
	}
	if source == SourceOwn {
		return false, nil
	}
	return decideSource(source, try(netns.SocketOptions{Transparent: true, Freebind: true}), log)
}

// decideSource decides by what the kernel said.
func decideSource(source SourceMode, refused error, log *slog.Logger) (bool, error) {
	switch {
	case source == SourceKept && refused != nil:
		return false, fmt.Errorf("%w: keeping a client's source address needs the capability NET_RAW; or set ENABLE_ORIG_SRC=false", refused)
	case refused != nil:
		log.Warn("applications will see the pod's own address for every client: theirs cannot be kept without the capability NET_RAW; "+
			"ENABLE_ORIG_SRC says which is wanted", "error", refused)
	case source == SourceAuto:
		log.Info("applications will see their clients' addresses: the kernel allows it, and ENABLE_ORIG_SRC was not set")
	}
	return refused == nil, nil
}
