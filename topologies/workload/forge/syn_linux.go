// SPDX-License-Identifier: Apache-2.0

package forge

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Send sends the SYN and waits for an answer. What the kernel does not permit is in the reply; an error means that it
// could not even be tried.
func (s SYN) Send() (Reply, error) {
	link, err := outward()
	if err != nil {
		return Reply{}, err
	}
	source := s.Source
	if !source.IsValid() {
		source = link.addr
	}
	ear, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(swap(unix.ETH_P_IP)))
	if err != nil {
		return Reply{Error: fmt.Sprintf("open a packet socket: %v", err), Answer: AnswerNone}, nil
	}
	defer unix.Close(ear)
	if s.Via == ViaRaw {
		err = s.sendRaw(source)
	} else {
		err = unix.Sendto(ear, s.packet(source), 0, &unix.SockaddrLinklayer{
			Protocol: swap(unix.ETH_P_IP), Ifindex: link.index, Halen: 6, Addr: link.gateway,
		})
	}
	if err != nil {
		return Reply{Error: err.Error(), Answer: AnswerNone}, nil
	}
	r, err := s.listen(ear)
	r.Sent = true
	return r, err
}

func (s SYN) sendRaw(source netip.Addr) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return fmt.Errorf("open a raw socket: %w", err)
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, s.packet(source), 0, &unix.SockaddrInet4{Addr: s.To.Addr().As4()})
}

func (s SYN) listen(fd int) (Reply, error) {
	until := time.Now().Add(s.Wait)
	buf := make([]byte, 65536)
	for {
		left := time.Until(until)
		if left <= 0 {
			return Reply{Answer: AnswerNone}, nil
		}
		limit := unix.NsecToTimeval(max(left, time.Millisecond).Nanoseconds())
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
			return Reply{}, fmt.Errorf("listen: %w", err)
		}
		n, _, err := unix.Recvfrom(fd, buf, 0)
		switch {
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return Reply{}, fmt.Errorf("listen: %w", err)
		}
		if r, ok := s.answers(buf[:n]); ok {
			return r, nil
		}
	}
}

func swap(v uint16) uint16 { return v<<8 | v>>8 }

// exit is the pod's link to the outside.
type exit struct {
	index   int
	addr    netip.Addr
	gateway [8]byte // its hardware address
}

// outward finds the first link that is up and no loopback, and who answers on its other end.
func outward() (exit, error) {
	links, err := net.Interfaces()
	if err != nil {
		return exit{}, fmt.Errorf("find the pod's link: %w", err)
	}
	for _, l := range links {
		if l.Flags&net.FlagLoopback != 0 || l.Flags&net.FlagUp == 0 {
			continue
		}
		e := exit{index: l.Index}
		addrs, err := l.Addrs()
		if err != nil {
			return exit{}, fmt.Errorf("find the pod's link: %w", err)
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Is4() {
				e.addr = p.Addr()
			}
		}
		if e.addr.IsValid() {
			e.gateway, err = neighbour(l.Name)
			return e, err
		}
	}
	return exit{}, errors.New("find the pod's link: it has none with an IPv4 address")
}

// neighbour is the hardware address that the kernel has last learned on a link.
func neighbour(link string) (mac [8]byte, err error) {
	f, err := os.Open("/proc/net/arp")
	if err != nil {
		return mac, fmt.Errorf("find the gateway: %w", err)
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) != 6 || fields[5] != link {
			continue
		}
		if hw, err := net.ParseMAC(fields[3]); err == nil && len(hw) == 6 {
			copy(mac[:], hw)
			return mac, nil
		}
	}
	return mac, fmt.Errorf("find the gateway: the kernel knows nobody on %s yet", link)
}
