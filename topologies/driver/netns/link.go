// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"context"
	"errors"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/order"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

// Link implements lab.Driver.
func (d *Driver) Link(a, b string) lab.Link { return link{d: d, a: a, b: b} }

type link struct {
	d    *Driver
	a, b string
}

func (l link) Cut(ctx context.Context) error {
	_, err := l.do(ctx, order.Link{Cut: true})
	return err
}

func (l link) Restore(ctx context.Context) error {
	_, err := l.do(ctx, order.Link{Restore: true})
	return err
}

func (l link) Impair(ctx context.Context, there, back lab.Impairment) error {
	if err := errors.Join(there.Validate(), back.Validate()); err != nil {
		return err
	}
	_, err := l.do(ctx, order.Link{Impair: []lab.Impairment{there, back}})
	return err
}

func (l link) Traffic(ctx context.Context) (lab.LinkTraffic, error) {
	reply, err := l.do(ctx, order.Link{Traffic: true})
	if err != nil || reply.Traffic == nil {
		return lab.LinkTraffic{}, err
	}
	return *reply.Traffic, nil
}

func (l link) do(ctx context.Context, r order.Link) (order.Reply, error) {
	dir, err := l.d.standing()
	if err != nil {
		return order.Reply{}, err
	}
	r.A, r.B = l.a, l.b
	return do(ctx, dir, order.Request{Link: &r}, nil)
}
