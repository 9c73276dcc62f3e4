// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/pcapgo"
)

// recording has a frame for each time, in seconds, on its one interface.
func recording(t *testing.T, intf string, at ...int64) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w, err := pcapgo.NewNgWriterInterface(&b, ngInterface(intf), pcapgo.DefaultNgWriterOptions)
	if err != nil {
		t.Fatal(err)
	}
	for _, sec := range at {
		frame := make([]byte, 60)
		if err := w.WritePacket(gopacket.CaptureInfo{Timestamp: time.Unix(sec, 0), CaptureLength: len(frame), Length: len(frame)}, frame); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return &b
}

func TestMerge(t *testing.T) {
	for _, secrets := range []string{"", "CLIENT_RANDOM aa bb\n"} {
		var out bytes.Buffer
		packets, err := Merge(&out, []byte(secrets), Recording{"shop/web", recording(t, "eth0", 1, 4)}, Recording{"node1", recording(t, "veth1", 2, 3, 5)},
			Recording{"node2", recording(t, "veth2")})
		if err != nil || packets != 5 {
			t.Fatalf("%d packets, %v", packets, err)
		}
		if has := bytes.Contains(out.Bytes(), []byte("CLIENT_RANDOM aa bb\n")); has != (secrets != "") {
			t.Errorf("secrets %q: in the recording: %v", secrets, has)
		}
		c, err := Read(&out)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, p := range c.Packets() {
			got = append(got, fmt.Sprint(p.Time.Unix(), " ", p.Interface))
		}
		want := []string{"1 shop/web eth0", "2 node1 veth1", "3 node1 veth1", "4 shop/web eth0", "5 node1 veth1"}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("secrets %q (-want +got):\n%s", secrets, d)
		}
	}
}

func TestMergeNamesWhatIsDamaged(t *testing.T) {
	whole := recording(t, "eth0", 1, 2)
	for name, damaged := range map[string]*bytes.Buffer{
		"no recording": bytes.NewBufferString("text"),
		"cut":          bytes.NewBuffer(whole.Bytes()[:whole.Len()-10]),
	} {
		_, err := Merge(&bytes.Buffer{}, nil, Recording{"node1", recording(t, "eth0", 1)}, Recording{"node2", damaged})
		if err == nil || !strings.Contains(err.Error(), "node2") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Merge(&bytes.Buffer{}, nil); err == nil {
		t.Error("nothing to merge: no error")
	}
}
