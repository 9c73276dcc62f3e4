// SPDX-License-Identifier: Apache-2.0

//go:build !linux

package forge

import "errors"

// Send needs sockets of Linux.
func (s SYN) Send() (Reply, error) { return Reply{}, errors.ErrUnsupported }
