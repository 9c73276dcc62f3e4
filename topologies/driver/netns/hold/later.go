// SPDX-License-Identifier: Apache-2.0

package hold

import (
	"context"
	"errors"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/order"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/pause"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

func (s *site) tokens(p *pod) ([]pause.File, error) { return nil, nil }
func (s *site) endpointsChanged() error             { return nil }
func (s *site) objectsChanged() error               { return nil }

func (s *site) link(r *order.Link) error { return errors.New("links: not built yet") }

func (s *site) capture(ctx context.Context, c *client, t *lab.Target) (int, error) {
	return 0, errors.New("captures: not built yet")
}

func (s *site) inspect(ctx context.Context, t *lab.Target) (*lab.Inspection, error) {
	return nil, errors.New("inspections: not built yet")
}
