// SPDX-License-Identifier: Apache-2.0

package impair

import (
	"errors"
	"fmt"
	"sync"

	"github.com/ambientlab/ambientlab/topologies/lab"
)

// Link is an impaired link. Its methods may be called concurrently, Close once.
type Link struct {
	forwarders []*forwarder
	running    sync.WaitGroup

	mu  sync.Mutex
	err error // guarded by mu: why a direction ended by itself
}

// Direction is a path and what happens on it.
type Direction struct {
	Path
	lab.Impairment
}

// Open impairs the directions of a link, at once or not at all. Around this moment, and that of Close, a packet may be seen twice; none
// is lost for that reason. The caller ends it with Close.
func Open(directions ...Direction) (*Link, error) {
	l := &Link{}
	for i, d := range directions {
		f, err := open(d.Path, d.Impairment, uint64(i))
		if err == nil {
			l.forwarders = append(l.forwarders, f)
			err = f.path.divert()
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("impair link: %w", err), l.Close())
		}
		l.running.Go(func() { l.note(f.run()) })
	}
	return l, nil
}

func (l *Link) note(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.err = errors.Join(l.err, err)
}

// Passed is what went through each direction so far. The error says that one has ended before its time.
func (l *Link) Passed() ([]lab.Passed, error) {
	var all []lab.Passed
	for _, f := range l.forwarders {
		all = append(all, f.passed())
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return all, l.err
}

// Close gives the packets back to the kernel, sends those that were still held, and waits.
func (l *Link) Close() error { return errors.Join(l.release(), l.finish()) }

// release gives the packets back to the kernel, while they are still forwarded too.
func (l *Link) release() error {
	var errs []error
	for _, f := range l.forwarders {
		errs = append(errs, f.path.release(), f.restore())
	}
	return errors.Join(errs...)
}

func (l *Link) finish() error {
	var errs []error
	for _, f := range l.forwarders {
		errs = append(errs, f.close())
	}
	l.running.Wait()
	return errors.Join(append(errs, l.err)...)
}
