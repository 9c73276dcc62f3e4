// SPDX-License-Identifier: Apache-2.0

package kubetest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

const adminToken = "test-administrator"

// real runs etcd all the time, and kube-apiserver between start and stop.
type real struct {
	server *Server
	binary string
	dir    string
	args   []string
	api    *process
}

// Real starts etcd and kube-apiserver from a multi-call binary, and ends both with the test.
func Real(t *testing.T, binary string) *Server {
	t.Helper()
	r := &real{server: &Server{Name: "kube-apiserver"}, binary: binary, dir: t.TempDir()}
	etcd, peers, port := freePort(t), freePort(t), freePort(t)
	url := fmt.Sprintf("http://127.0.0.1:%d", etcd)
	store := run(t, r.dir, binary, "etcd", "--data-dir", filepath.Join(r.dir, "etcd"), "--unsafe-no-fsync", "--log-level", "error",
		"--listen-client-urls", url, "--advertise-client-urls", url,
		"--listen-peer-urls", fmt.Sprintf("http://127.0.0.1:%d", peers), "--initial-advertise-peer-urls", fmt.Sprintf("http://127.0.0.1:%d", peers),
		"--initial-cluster", fmt.Sprintf("default=http://127.0.0.1:%d", peers))
	t.Cleanup(store.kill)
	r.keys(t)
	r.args = []string{
		"kube-apiserver", "--etcd-servers", url, "--cert-dir", filepath.Join(r.dir, "certs"),
		"--bind-address", "127.0.0.1", "--secure-port", fmt.Sprint(port), "--service-cluster-ip-range", "10.96.0.0/16",
		"--authorization-mode", "RBAC", "--token-auth-file", filepath.Join(r.dir, "tokens.csv"),
		"--service-account-issuer", "https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file", filepath.Join(r.dir, "sa.pub"), "--service-account-signing-key-file", filepath.Join(r.dir, "sa.key"),
		"--disable-admission-plugins", "ServiceAccount", // nobody here makes the default accounts
		"--enable-priority-and-fairness=false",
	}
	r.server.backend = r
	r.server.connect(t, fmt.Sprintf("https://127.0.0.1:%d", port), adminToken)
	t.Cleanup(func() { r.stop(t) }) // the last one that was started, whichever part of the test did it
	r.start(t)
	return r.server
}

// keys writes what tokens of service accounts are signed with, and who the administrator is.
func (r *real) keys(t testing.TB) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	private, err := x509.MarshalECPrivateKey(key)
	must(t, err)
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	must(t, err)
	for name, data := range map[string][]byte{
		"sa.key":     pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private}),
		"sa.pub":     pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}),
		"tokens.csv": []byte(adminToken + `,admin,admin,"system:masters"` + "\n"),
	} {
		must(t, os.WriteFile(filepath.Join(r.dir, name), data, 0o600))
	}
}

func (r *real) start(t testing.TB) {
	t.Helper()
	r.api = run(t, r.dir, r.binary, r.args...)
	var last string
	wait(t, "kube-apiserver is ready", func() bool {
		if r.api.ended() {
			t.Fatalf("kube-apiserver ended:\n%s", r.api.tail())
		}
		var code int
		code, last = r.server.do(t, http.MethodGet, "/readyz", "", nil)
		return code == http.StatusOK
	}, &last)
}

func (r *real) stop(testing.TB) {
	if r.api != nil {
		r.api.kill()
	}
}

// freePort finds a port that nobody has now.
func freePort(t testing.TB) int {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// process is a program of the test's own, whose output goes to a file.
type process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{}
}

// run starts a program, which the caller kills.
func run(t testing.TB, dir, binary string, args ...string) *process {
	t.Helper()
	log, err := os.CreateTemp(dir, args[0]+"-*.log")
	must(t, err)
	defer log.Close()
	p := &process{cmd: exec.Command(binary, args...), log: log.Name(), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	dieWithUs(p.cmd)
	must(t, p.cmd.Start())
	go func() { _ = p.cmd.Wait(); close(p.done) }()
	return p
}

// kill ends it at once and waits; it may be called again.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

func (p *process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

func (p *process) tail() string {
	data, _ := os.ReadFile(p.log)
	return string(data[max(0, len(data)-4000):])
}
