// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/ambientlab/ambientlab/dataplane/netns"
)

// preflight tries in this process's own namespace what every pod will need: entering a namespace, marking a socket and
// binding an address that is not local. Without them no pod could be served, and the first pod is a bad time to learn it.
func preflight(ctx context.Context, own *netns.NS, mark uint32, transparent bool) error {
	err := own.Do(func() error { return nil })
	if errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("%w: entering a pod's network namespace needs the capability SYS_ADMIN", err)
	}
	if err != nil {
		return err
	}
	try := func(o netns.SocketOptions) error {
		l, err := own.ListenTCP(ctx, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0), o)
		if err != nil {
			return err
		}
		return l.Close()
	}
	if err := try(netns.SocketOptions{Mark: mark}); err != nil {
		return fmt.Errorf("%w: marking the proxy's packets needs the capability NET_ADMIN", err)
	}
	if !transparent {
		return nil
	}
	if err := try(netns.SocketOptions{Transparent: true, Freebind: true}); err != nil {
		return fmt.Errorf("%w: keeping a client's source address needs the capability NET_RAW; or set ENABLE_ORIG_SRC=false", err)
	}
	return nil
}
