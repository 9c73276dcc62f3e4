// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"fmt"
	"log/slog"
	"os"
)

// OpenKeyLog opens, or makes, a file for the secrets of TLS connections in NSS key-log format, for a tls.Config's
// KeyLogWriter: whoever has it reads the traffic, so it is for labs alone, and log is warned. The caller closes it.
// "" opens none and returns nil.
// Source: RFC 9850 (the SSLKEYLOGFILE format).
func OpenKeyLog(path string, log *slog.Logger) (*os.File, error) {
	if path == "" {
		return nil, nil
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("log TLS secrets (unset SSLKEYLOGFILE to log none): %w", err)
	}
	log.Warn("the secrets of every TLS connection are logged: whoever reads this file reads the traffic", "file", path)
	return f, nil
}
