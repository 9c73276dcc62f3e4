// SPDX-License-Identifier: Apache-2.0

package workload

// Commands of the workload binary for drivers that cannot end a command by themselves: it is started under a mark, and what
// has the mark can be killed.
const (
	UnderCommand = "under" // MARK COMMAND…
	KillCommand  = "kill"  // MARK
)

// SessionCommand of the workload binary is the far end of a session (package session), on its standard input and output.
const SessionCommand = "session"

// markVariable is the environment variable with the mark. It is inherited.
const markVariable = "AMBIENTLAB_EXEC"

// Refusal is how standard error begins if a command under a mark was not started; the error number and a newline follow.
func Refusal(mark string) string { return "workload under " + mark + ": " }
