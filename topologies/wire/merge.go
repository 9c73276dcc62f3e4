// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/pcapgo"
)

// Recording is one of several that are merged.
type Recording struct {
	Name string // goes before the names of its interfaces
	R    io.Reader
}

// Merge writes recordings as one, in the order of their packets' times, with an interface for each of theirs. secrets, in
// NSS key-log format and none if empty, go in front, for Wireshark to read the connections they belong to. It returns how
// many packets there are.
// Source: the pcapng draft, sections 4.3 and 4.7.
func Merge(w io.Writer, secrets []byte, recordings ...Recording) (packets int, err error) {
	m := &merger{out: w, secrets: secrets}
	for _, r := range recordings {
		in, err := pcapgo.NewNgReader(r.R, pcapgo.DefaultNgReaderOptions)
		if err != nil {
			return 0, fmt.Errorf("merge recordings: read %s: %w", r.Name, err)
		}
		m.from = append(m.from, &mergeSource{name: r.Name, in: in, ids: map[int]int{}})
	}
	if err := m.run(); err != nil {
		return 0, fmt.Errorf("merge recordings: %w", err)
	}
	return m.packets, nil
}

type merger struct {
	out     io.Writer
	secrets []byte
	writer  *pcapgo.NgWriter // nil before the first interface
	from    []*mergeSource
	packets int
}

// mergeSource holds the first packet that is not written yet.
type mergeSource struct {
	name  string
	in    *pcapgo.NgReader
	ids   map[int]int // the merged interface numbers by its own
	frame []byte      // nil at its end
	info  gopacket.CaptureInfo
}

func (s *mergeSource) next() error {
	frame, info, err := s.in.ReadPacketData()
	s.frame, s.info = frame, info
	if errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		s.frame = nil
		return nil
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", s.name, err)
	}
	return nil
}

func (m *merger) run() error {
	for _, s := range m.from {
		if err := s.next(); err != nil {
			return err
		}
		for i := range s.in.NInterfaces() { // also those without packets
			if _, err := m.id(s, i); err != nil {
				return err
			}
		}
	}
	for {
		s := m.earliest()
		if s == nil {
			break
		}
		id, err := m.id(s, s.info.InterfaceIndex)
		if err != nil {
			return err
		}
		s.info.InterfaceIndex = id
		m.packets++
		if err := m.writer.WritePacket(s.info, s.frame); err != nil {
			return err
		}
		if err := s.next(); err != nil {
			return err
		}
	}
	if m.writer == nil {
		return errors.New("nothing was recorded on any interface")
	}
	return m.writer.Flush()
}

func (m *merger) earliest() *mergeSource {
	var first *mergeSource
	for _, s := range m.from {
		if s.frame != nil && (first == nil || s.info.Timestamp.Before(first.info.Timestamp)) {
			first = s
		}
	}
	return first
}

// id is the merged number of a source's interface.
func (m *merger) id(s *mergeSource, index int) (int, error) {
	if id, known := s.ids[index]; known {
		return id, nil
	}
	intf, err := s.in.Interface(index)
	if err != nil {
		return 0, fmt.Errorf("read %s: %w", s.name, err)
	}
	intf.Name = s.name + " " + intf.Name
	id := 0
	if m.writer == nil {
		err = m.begin(intf)
	} else {
		id, err = m.writer.AddInterface(intf)
	}
	s.ids[index] = id
	return id, err
}

// begin writes what stands before the first packet.
func (m *merger) begin(first pcapgo.NgInterface) (err error) {
	options := pcapgo.DefaultNgWriterOptions
	options.SectionInfo.Application = "ambientlab"
	if m.writer, err = pcapgo.NewNgWriterInterface(m.out, first, options); err != nil {
		return err
	}
	if err := m.writer.Flush(); err != nil || len(m.secrets) == 0 {
		return err
	}
	_, err = m.out.Write(secretsBlock(m.secrets))
	return err
}

// secretsBlock is a Decryption Secrets Block.
func secretsBlock(secrets []byte) []byte {
	const blockType, tlsKeyLog = 0x0a, 0x544c534b
	padded := bytes.Clone(secrets)
	for len(padded)%4 != 0 {
		padded = append(padded, 0)
	}
	total := uint32(5*4 + len(padded))
	le := binary.LittleEndian
	b := le.AppendUint32(nil, blockType)
	b = le.AppendUint32(b, total)
	b = le.AppendUint32(b, tlsKeyLog)
	b = le.AppendUint32(b, uint32(len(secrets)))
	b = append(b, padded...)
	return le.AppendUint32(b, total)
}
