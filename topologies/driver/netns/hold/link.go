// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/impair"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/order"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/nodenet"
)

// impairments are the links that are worse than they were built.
type impairments struct {
	mu     sync.Mutex
	byPair map[[2]string]impairment // guarded by mu; a pod's is under its node's name and its own
}

// impairment is what has to be undone to make a link good again.
type impairment interface {
	Passed() ([]lab.Passed, error)
	Close() error
}

func (s *site) link(ctx context.Context, r *order.Link) (order.Reply, error) {
	switch {
	case r.Traffic:
		return s.traffic(r)
	case len(r.Impair) == 2:
		return order.Reply{}, s.impair(ctx, r)
	case r.Restore:
		err := s.restoreImpaired(r.A, r.B)
		if strings.Contains(r.B, "/") {
			return order.Reply{}, err
		}
		return order.Reply{}, errors.Join(err, s.cut(ctx, r.A, r.B, false))
	case r.Cut:
		return order.Reply{}, s.cut(ctx, r.A, r.B, true)
	}
	return order.Reply{}, errors.New("a link is asked for nothing")
}

func (s *site) members(r, t string) (a, b *member, err error) {
	for _, m := range s.under.list() {
		switch m.host.Name {
		case r:
			a = m
		case t:
			b = m
		}
	}
	if a == nil || b == nil {
		return nil, nil, fmt.Errorf("no link between %q and %q: want two of the nodes and external hosts", r, t)
	}
	return a, b, nil
}

// cut cuts what is between two members, or ends that.
func (s *site) cut(ctx context.Context, nameA, nameB string, cut bool) error {
	a, b, err := s.members(nameA, nameB)
	if err != nil {
		return err
	}
	for _, pair := range [][2]*member{{a, b}, {b, a}} {
		pair[0].mu.Lock()
		pair[0].cuts[pair[1].host.Name] = cut
		pair[0].mu.Unlock()
	}
	return s.control.flush(ctx)
}

// pairOf is the key of a link, and whether it is named the other way round.
func pairOf(a, b string) (key [2]string, turned bool) {
	if a > b && !strings.Contains(b, "/") {
		return [2]string{b, a}, true
	}
	return [2]string{a, b}, false
}

// impair replaces what a link was before.
func (s *site) impair(ctx context.Context, r *order.Link) error {
	key, turned := pairOf(r.A, r.B)
	there, back := r.Impair[0], r.Impair[1]
	if turned {
		there, back = back, there
	}
	u := &s.under.impaired
	u.mu.Lock()
	defer u.mu.Unlock()
	if err := u.end(key); err != nil {
		return err
	}
	var i impairment
	var err error
	if strings.Contains(key[1], "/") {
		i, err = s.impairPod(ctx, key[0], key[1], there, back)
	} else {
		i, err = s.impairMembers(key, there, back)
	}
	if err != nil {
		return fmt.Errorf("impair link between %s and %s: %w", r.A, r.B, err)
	}
	if u.byPair == nil {
		u.byPair = map[[2]string]impairment{}
	}
	u.byPair[key] = i
	return nil
}

// end is called with mu held.
func (u *impairments) end(key [2]string) error {
	i := u.byPair[key]
	if i == nil {
		return nil
	}
	delete(u.byPair, key)
	if err := i.Close(); err != nil {
		return fmt.Errorf("restore link between %s and %s: %w", key[0], key[1], err)
	}
	return nil
}

func (s *site) restoreImpaired(a, b string) error {
	key, _ := pairOf(a, b)
	u := &s.under.impaired
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.end(key)
}

func (s *site) traffic(r *order.Link) (order.Reply, error) {
	key, turned := pairOf(r.A, r.B)
	u := &s.under.impaired
	u.mu.Lock()
	defer u.mu.Unlock()
	i := u.byPair[key]
	if i == nil {
		return order.Reply{}, fmt.Errorf("the link between %s and %s is not impaired", r.A, r.B)
	}
	passed, err := i.Passed()
	if err != nil {
		return order.Reply{}, err
	}
	t := lab.LinkTraffic{There: passed[0], Back: passed[1]}
	if turned {
		t.There, t.Back = t.Back, t.There
	}
	return order.Reply{Traffic: &t}, nil
}

// impairMembers works at the bridge, on what comes in by one member's port for the other's address.
func (s *site) impairMembers(key [2]string, there, back lab.Impairment) (impairment, error) {
	a, b, err := s.members(key[0], key[1])
	if err != nil {
		return nil, err
	}
	ends := [2]*member{a, b}
	var directions []impair.Direction
	for n, i := range []lab.Impairment{there, back} {
		from, to := ends[n], ends[1-n]
		mac, err := impair.Address(impair.Device{NS: to.ns, Name: nodenet.UnderlayLink})
		if err != nil {
			return nil, err
		}
		directions = append(directions, impair.Direction{Impairment: i, Path: impair.Path{
			In: impair.Device{Name: from.port}, Out: impair.Device{Name: to.port}, To: mac,
			Sender: impair.Device{NS: from.ns, Name: nodenet.UnderlayLink},
		}})
	}
	return impair.Open(directions...)
}

// impairPod works in the pod's node.
func (s *site) impairPod(ctx context.Context, nodeName, podName string, there, back lab.Impairment) (impairment, error) {
	ns, name, _ := strings.Cut(podName, "/")
	p, err := s.pod(lab.PodRef{Namespace: ns, Name: name})
	if err != nil {
		return nil, err
	}
	if p.node.name != nodeName {
		return nil, fmt.Errorf("pod %s is on node %s", podName, p.node.name)
	}
	return impair.OpenPod(ctx, impair.Device{NS: p.ns, Name: podInterface}, p.node.ns, there, back)
}

// endImpairedPod lets go of a pod's cable before the pod does.
func (s *site) endImpairedPod(p *pod) error { return s.restoreImpaired(p.node.name, p.ref.String()) }
