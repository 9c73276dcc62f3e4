// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// An echo server of TCP or UDP takes the first bytes it receives for a question if they begin with a zero byte, which
// no payload does. A question is one line; numbers in it are decimal. UDP knows only AskSeen.
const (
	// AskSeen: answer with one line of JSON (a Seen), then echo.
	AskSeen = "\x00seen"
	// AskTail <n>: read to the end, answer with a Seen that counts and hashes what came, then n bytes, then close.
	AskTail = "\x00tail"
	// AskFirst <n> <token>: send n bytes and close the sending side, then read to the end and keep a Seen under token.
	AskFirst = "\x00first"
	// AskReset <n>: send n bytes, then reset the connection.
	AskReset = "\x00reset"
	// AskWatch <token>: answer with a Seen, read to the end, and keep a Seen under token that says how it came.
	AskWatch = "\x00watch"
	// AskReport <token>: answer with the Seen kept under token, once it is there, and close.
	AskReport = "\x00report"
)

const maxQuestion = 256

// question is a parsed question; verb "" means that there was none and everything is payload.
type question struct {
	verb  string
	n     int64
	token string
}

// readQuestion looks at the first byte, and takes a line only if it begins a question.
func readQuestion(r *bufio.Reader) (question, error) {
	first, err := r.Peek(1)
	if err != nil || first[0] != 0 {
		return question{}, err
	}
	line, err := r.ReadSlice('\n')
	if err != nil {
		return question{}, fmt.Errorf("read question: %w", err)
	}
	return parseQuestion(string(line[:len(line)-1]))
}

func parseQuestion(line string) (question, error) {
	f := strings.Fields(line)
	q := question{verb: f[0]}
	want := map[string]int{AskSeen: 1, AskTail: 2, AskFirst: 3, AskReset: 2, AskWatch: 2, AskReport: 2}[q.verb]
	if len(f) != want {
		return question{}, fmt.Errorf("question %q is not understood", line)
	}
	if q.verb == AskTail || q.verb == AskFirst || q.verb == AskReset {
		n, err := strconv.ParseInt(f[1], 10, 64)
		if err != nil || n < 0 {
			return question{}, fmt.Errorf("question %q: %q is not a number of bytes", line, f[1])
		}
		q.n = n
	}
	if q.verb == AskFirst || q.verb == AskWatch || q.verb == AskReport {
		q.token = f[len(f)-1]
	}
	return q, nil
}

func (s Seen) writeLine(w io.Writer) error {
	return json.NewEncoder(w).Encode(s) // ends with a newline
}

// readSeen reads one line of JSON.
func readSeen(r *bufio.Reader) (*Seen, error) {
	line, err := r.ReadBytes('\n')
	if err != nil {
		return nil, err
	}
	s := &Seen{}
	if err := json.Unmarshal(line, s); err != nil {
		return nil, fmt.Errorf("%w: not a report: %w", errMismatch, err)
	}
	return s, nil
}
