// SPDX-License-Identifier: Apache-2.0

package netns

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// threadNS is the namespace of the thread that opens it.
const threadNS = "/proc/thread-self/ns/net"

// NS is an open descriptor of a network namespace, which keeps the namespace alive. It is safe for concurrent use; after
// Close every method that needs the descriptor returns an error that matches os.ErrClosed.
type NS struct {
	f     *os.File // set once
	dev   uint64   // set once
	inode uint64   // set once
	file  string   // set once: the name of files that are sockets in it
}

// Open opens the namespace at path, such as /proc/<pid>/ns/net or a file that one is bind-mounted on.
func Open(path string) (*NS, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	n, err := FromFD(fd)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	return n, nil
}

// FromFD takes ownership of fd, also when it returns an error. fd must be a network namespace.
func FromFD(fd int) (*NS, error) {
	unix.CloseOnExec(fd)
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE)
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("descriptor %d is not a namespace: %w", fd, err)
	}
	if kind != unix.CLONE_NEWNET {
		unix.Close(fd)
		return nil, fmt.Errorf("descriptor %d is a namespace of kind %#x, not a network namespace", fd, kind)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("stat namespace descriptor %d: %w", fd, err)
	}
	name := fmt.Sprintf("net:[%d]", st.Ino)
	return &NS{f: os.NewFile(uintptr(fd), name), dev: st.Dev, inode: st.Ino, file: "socket in " + name}, nil
}

// Current opens the namespace of the calling thread: inside Do, the one that Do entered.
func Current() (*NS, error) { return Open(threadNS) }

// New makes a namespace that holds nothing but a loopback link that is down. It lives until the last descriptor, process
// and socket in it is gone.
func New() (*NS, error) {
	var n *NS
	err := onThread(func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("create network namespace: %w", err)
		}
		n, err = Current()
		return err
	})
	if err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// Close releases the descriptor. It may be called more than once, and on nil.
func (n *NS) Close() error {
	if n == nil {
		return nil
	}
	if err := n.f.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
		return err
	}
	return nil
}

// Inode is the namespace's number, as in net:[4026531840].
func (n *NS) Inode() uint64 { return n.inode }

// Fd is the descriptor. It stays n's own and is valid until Close.
func (n *NS) Fd() int { return int(n.f.Fd()) }

// Same reports whether both descriptors name one namespace.
func (n *NS) Same(o *NS) bool { return n.dev == o.dev && n.inode == o.inode }

func (n *NS) String() string { return fmt.Sprintf("net:[%d]", n.inode) }

// Dup opens a second descriptor of the same namespace, with a life of its own.
func (n *NS) Dup() (*NS, error) {
	fd := -1
	err := n.withFD(func(own int) (err error) {
		fd, err = unix.FcntlInt(uintptr(own), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("duplicate %s: %w", n, err)
	}
	return FromFD(fd)
}

// Do runs fn in the namespace, on a thread of its own that is locked meanwhile, and returns fn's error. Goroutines that fn
// starts run outside. A thread that cannot be switched back is never used again.
func (n *NS) Do(fn func() error) error {
	return onThread(func() error {
		if err := n.withFD(setns); err != nil {
			return fmt.Errorf("enter %s: %w", n, err)
		}
		return fn()
	})
}

// withFD keeps the descriptor from being closed, and its number from being reused, while use runs.
func (n *NS) withFD(use func(fd int) error) error {
	rc, err := n.f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := rc.Control(func(fd uintptr) { inner = use(int(fd)) }); err != nil {
		return os.ErrClosed // the only reason; package os returns an error of its poller here
	}
	return inner
}

// home is the namespace of every thread that is not locked: opened once, as a proxy makes a socket for every connection.
var home homeNS

type homeNS struct {
	mu   sync.Mutex
	fd   int
	open bool
}

// descriptor returns the namespace's, from a thread that is in it.
func (h *homeNS) descriptor() (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.open {
		return h.fd, nil
	}
	fd, err := unix.Open(threadNS, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open own network namespace %s: %w", threadNS, err)
	}
	h.fd, h.open = fd, true
	return fd, nil
}

// onThread runs fn on a locked thread, in a goroutine of its own: if the thread's namespace cannot be restored, the goroutine
// ends while still locked, the runtime ends the thread with it, and the caller goes on elsewhere. A panic in fn reaches
// the caller.
func onThread(fn func() error) error {
	var err error
	var panicked any
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { panicked = recover() }()
		runtime.LockOSThread()
		fd, openErr := home.descriptor()
		if openErr != nil {
			runtime.UnlockOSThread()
			err = openErr
			return
		}
		defer func() {
			if back := setns(fd); back != nil {
				err = errors.Join(err, fmt.Errorf("return from network namespace: %w", back))
				return
			}
			runtime.UnlockOSThread()
		}()
		err = fn()
	}()
	<-done
	if panicked != nil {
		panic(panicked)
	}
	return err
}
