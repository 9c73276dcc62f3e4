// SPDX-License-Identifier: Apache-2.0

package zds

import (
	"context"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/ambientlab/ambientlab/dataplane/zds/zdsapi"
)

func addSeeds(f *testing.F, messages ...proto.Message) {
	for _, m := range messages {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
}

// roundTrip encodes what was decoded and decodes it once more.
func roundTrip[M proto.Message](t *testing.T, m, back M) {
	t.Helper()
	again, err := proto.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	if err := proto.Unmarshal(again, back); err != nil || !proto.Equal(m, back) {
		t.Fatalf("became %v, %v", back, err)
	}
}

// FuzzRequests is what an agent may send to a proxy.
func FuzzRequests(f *testing.F) {
	addSeeds(f, addRequest(Workload{UID: "u", Name: "n"}), keepRequest, delRequest, snapshotRequest)
	f.Fuzz(func(t *testing.T, b []byte) {
		var req, back zdsapi.WorkloadRequest
		if len(b) == 0 || len(b) > maxPacket || proto.Unmarshal(b, &req) != nil {
			return
		}
		c := NewClient(ClientConfig{Handler: newRecorder(), Log: quiet})
		snapshot := false
		if _, err := c.dispatch(context.Background(), &req, nil, &snapshot); err != nil && !errors.Is(err, ErrProtocol) {
			t.Fatalf("error %v is not %v", err, ErrProtocol)
		}
		roundTrip(t, &req, &back)
	})
}

// FuzzAnswers is what a proxy may send to an agent, after its hello and as its hello.
func FuzzAnswers(f *testing.F) {
	addSeeds(f, acknowledge(nil), acknowledge(errors.New("port 15008 is taken")), &zdsapi.ZdsHello{Version: zdsapi.Version_V1})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 || len(b) > maxPacket {
			return
		}
		var rsp, backRsp zdsapi.WorkloadResponse
		if proto.Unmarshal(b, &rsp) == nil {
			_ = rsp.GetAck().GetError()
			roundTrip(t, &rsp, &backRsp)
		}
		var hello, backHello zdsapi.ZdsHello
		if proto.Unmarshal(b, &hello) == nil {
			roundTrip(t, &hello, &backHello)
		}
	})
}

// FuzzDescriptors is what may come beside a packet. No more descriptors are found than there is room for, and an error is the
// peer's fault.
func FuzzDescriptors(f *testing.F) {
	f.Add(unix.UnixRights(3))
	f.Add(unix.UnixRights(3, 4, 5))
	f.Add(append(unix.UnixRights(3), unix.UnixRights(4)...))
	f.Add(unix.UnixRights(many(7, maxDescriptors)...)[:20])
	f.Fuzz(func(t *testing.T, oob []byte) {
		fds, err := descriptors(oob)
		if err != nil && !errors.Is(err, ErrProtocol) {
			t.Fatalf("error %v is not %v", err, ErrProtocol)
		}
		if 4*len(fds) > len(oob) {
			t.Fatalf("%d descriptors in %d bytes", len(fds), len(oob))
		}
	})
}

// FuzzAcknowledgement is an error of a proxy's on its way to the agent: it arrives as it began, in a packet that fits.
func FuzzAcknowledgement(f *testing.F) {
	for _, s := range []string{"", "x", "\xff\xfe", string(make([]byte, 5000))} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		b, err := proto.Marshal(acknowledge(errors.New(text)))
		if err != nil || len(b) > maxPacket {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
		var rsp zdsapi.WorkloadResponse
		if err := proto.Unmarshal(b, &rsp); err != nil || rsp.GetAck().GetError() == "" {
			t.Fatalf("became %v, %v", &rsp, err)
		}
	})
}
