// SPDX-License-Identifier: Apache-2.0

package ztunnel

import (
	"errors"
	"fmt"
	"net/http"

	"github.com/ambientlab/ambientlab/dataplane/authz"
	"github.com/ambientlab/ambientlab/dataplane/hbone"
	"github.com/ambientlab/ambientlab/dataplane/identity"
	"github.com/ambientlab/ambientlab/dataplane/telemetry"
)

// Why a connection is refused or cut. Their text is the error of the access log.
var (
	errUnknownSelf       = errors.New("unknown source")
	errSelfCall          = errors.New("self call: the destination is a port of the proxy itself")
	errNotOwn            = errors.New("the destination is not an address of this pod")
	errApplicationTunnel = errors.New("application tunnels are not supported yet")
	errPodGone           = errors.New("connection cut: the pod left the mesh")
	errDrained           = errors.New("connection cut: the drain's deadline passed")
)

// policyError is a connection that policy refuses, at once or because policy changed.
type policyError struct {
	decision authz.Decision
	late     bool
}

func (e *policyError) Error() string {
	s := "AuthorizationPolicyRejection: "
	if e.late {
		s = "AuthorizationPolicyLateRejection: policy changed: "
	}
	s += e.decision.Reason.String()
	if p := e.decision.Policy(); p != "" {
		s += " (" + p + ")"
	}
	return s
}

// refusal is the status that tells a client of a tunnel why its connection was rejected (A1.3).
func refusal(err error) int {
	if denied := (*policyError)(nil); errors.As(err, &denied) {
		return http.StatusUnauthorized
	}
	return http.StatusServiceUnavailable
}

// tunnelError says why no tunnel came about, as response flag and as an error that tells an operator where to look.
func tunnelError(err error) (flag string, said error) {
	if unavailable := (*identity.UnavailableError)(nil); errors.As(err, &unavailable) {
		return telemetry.FlagIdentity, err
	}
	if revocation(err) {
		return telemetry.FlagRevoked, err
	}
	if refused := (*hbone.StatusError)(nil); errors.As(err, &refused) {
		if refused.Code == http.StatusUnauthorized {
			return telemetry.FlagDeny, fmt.Errorf("%w: denied by the destination's policy", err)
		}
		return telemetry.FlagConnect, err
	}
	failed := (*hbone.ConnectError)(nil)
	if !errors.As(err, &failed) {
		return telemetry.FlagConnect, err
	}
	switch {
	case failed.Stage == hbone.StageTLS:
		return telemetry.FlagTLS, err
	case failed.Stage == hbone.StageH2:
		return telemetry.FlagH2, err
	case failed.Timeout:
		return telemetry.FlagNetworkPolicy, fmt.Errorf("%w: timed out, is port 15008 blocked by a NetworkPolicy?", err)
	default:
		return telemetry.FlagConnect, err
	}
}
