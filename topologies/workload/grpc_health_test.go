// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"fmt"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// As kubelet asks: with gRPC's own client.
func TestHealthByGRPC(t *testing.T) {
	conn, err := grpc.NewClient(fmt.Sprintf("localhost:%d", startServer(t)[GRPC]), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	reply, err := grpc_health_v1.NewHealthClient(conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil || reply.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("%v, %v: want SERVING", reply, err)
	}
}
