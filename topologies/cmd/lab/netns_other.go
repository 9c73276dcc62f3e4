// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package main

import (
	"context"
	"errors"
	"runtime"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/labdir"
	"github.com/ambientlab/ambientlab/topologies/lab"
)

var errNoNamespaces = errors.New("labs of the netns driver are made of Linux namespaces, which " + runtime.GOOS + " has not: use --driver kind or kube")

func attachNetns(context.Context, labdir.Dir) (*lab.Lab, error) { return nil, errNoNamespaces }

func downNetns(context.Context, labdir.Dir) error { return errNoNamespaces }

func (a *app) netnsCandidate(upOptions) (*candidate, error) { return nil, errNoNamespaces }

func (a *app) hold(context.Context, string, string, bool) error { return errNoNamespaces }
