// SPDX-License-Identifier: Apache-2.0

package pause

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/ambientlab/ambientlab/topologies/driver/netns/child"
)

// openTerminal makes a pseudo terminal of this process's own devpts. The terminal end is asked for by its master
// (ioctl_tty(2), TIOCGPTPEER): a path could lead to another devpts.
func openTerminal(t *Terminal) (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("open terminal: %w", err)
	}
	master = os.NewFile(uintptr(fd), "ptmx")
	fail := func(what string, err error) (*os.File, *os.File, error) {
		master.Close()
		return nil, nil, fmt.Errorf("%s terminal: %w", what, err)
	}
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return fail("unlock", err)
	}
	if t.Rows > 0 && t.Cols > 0 {
		if err := unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: t.Rows, Col: t.Cols}); err != nil {
			return fail("size", err)
		}
	}
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return fail("open", errno)
	}
	return master, os.NewFile(peer, "pts"), nil
}

// startOnTerminal starts a process whose session a new terminal controls, and returns the terminal's other end.
func (p *initProcess) startOnTerminal(s child.Spec, t *Terminal) (*child.Process, *os.File, error) {
	master, slave, err := openTerminal(t)
	if err != nil {
		return nil, nil, err
	}
	defer slave.Close()
	s.Files = []*os.File{slave, slave, slave}
	s.Sys.Setctty = true // of descriptor 0
	c, err := p.children.Start(s)
	if err != nil {
		master.Close()
		return nil, nil, err
	}
	return c, master, nil
}
