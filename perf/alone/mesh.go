// SPDX-License-Identifier: Apache-2.0

package alone

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/ambientlab/ambientlab/dataplane/control"
	"github.com/ambientlab/ambientlab/dataplane/identity"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/source"
)

// A hundred workloads make one service, ten services one namespace, and a node holds a hundred.
const (
	perService   = 100
	perNamespace = 10 * perService
	perNode      = 100
)

// member is one workload of the mesh.
type member struct {
	name, namespace, app, node string
	addr                       netip.Addr
}

func memberOf(i int) member {
	app := fmt.Sprintf("app-%d", i/perService)
	return member{
		name: fmt.Sprintf("%s-6d4cf56db6-%05d", app, i), namespace: fmt.Sprintf("ns-%d", i/perNamespace), app: app, node: fmt.Sprintf("node-%d", i/perNode),
		addr: netip.AddrFrom4([4]byte{10, byte(64 + i>>16), byte(i >> 8), byte(i)}),
	}
}

func vipOf(service int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 32, byte(service >> 8), byte(service)})
}

func ownAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 9, byte(i >> 8), byte(i)}) }

// configure prepares where the ztunnel reads its configuration, and returns the environment that says so. What serves
// it belongs to g.
func configure(ctx context.Context, g *errgroup.Group, o Options, dir string) (env []string, err error) {
	if o.XDS {
		return serveXDS(ctx, g, o, dir)
	}
	path := filepath.Join(dir, "xds.yaml")
	if err := writeDocument(path, o); err != nil {
		return nil, fmt.Errorf("write local configuration: %w", err)
	}
	return []string{"LOCAL_XDS_PATH=" + path}, nil
}

func writeDocument(path string, o Options) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	fmt.Fprintln(w, "workloads:")
	for i := range o.Pods {
		name := podName(i)
		fmt.Fprintf(w, "- {uid: Kubernetes//Pod/node/%s, name: %s, namespace: node, serviceAccount: %s, workloadIps: [%s], protocol: HBONE, node: node}\n",
			name, name, name, ownAddr(i))
	}
	for i := range o.Workloads {
		m := memberOf(i)
		fmt.Fprintf(w, "- {uid: Kubernetes//Pod/%s/%s, name: %s, namespace: %s, serviceAccount: %s, workloadIps: [%s], protocol: HBONE, node: %s, "+
			"workloadName: %s, workloadType: Deployment, canonicalName: %s, canonicalRevision: latest, clusterId: Kubernetes, services: {%s/%s.%s.svc.cluster.local: {80: 8080}}}\n",
			m.namespace, m.name, m.name, m.namespace, m.app, m.addr, m.node, m.app, m.app, m.namespace, m.app, m.namespace)
	}
	fmt.Fprintln(w, "services:")
	for i := range (o.Workloads + perService - 1) / perService {
		m := memberOf(i * perService)
		fmt.Fprintf(w, "- {name: %s, namespace: %s, hostname: %s.%s.svc.cluster.local, vips: [/%s], ports: {80: 8080}}\n",
			m.app, m.namespace, m.app, m.namespace, vipOf(i))
	}
	return errors.Join(w.Flush(), f.Close())
}

// serveXDS runs a control plane whose source are the same workloads, as pods and services.
func serveXDS(ctx context.Context, g *errgroup.Group, o Options, dir string) ([]string, error) {
	authority, err := identity.LoadOrCreateAuthority(filepath.Join(dir, "ca"), mesh.DefaultTrustDomain)
	if err != nil {
		return nil, err
	}
	root, token := filepath.Join(dir, "root.pem"), filepath.Join(dir, "var/run/secrets/tokens")
	if err := errors.Join(os.WriteFile(root, authority.RootsPEM(), 0o600), os.MkdirAll(token, 0o700),
		os.WriteFile(filepath.Join(token, "istio-token"), []byte("t"), 0o600)); err != nil {
		return nil, err
	}
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:15012")
	if err != nil {
		return nil, err
	}
	s, err := control.New(control.Config{
		Source: newFixed(objects(o)), Authority: authority, Authenticator: anybody{}, Listener: l, ServingNames: []string{"127.0.0.1"},
	})
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	g.Go(func() error { return s.Run(ctx) })
	return []string{"XDS_ADDRESS=https://127.0.0.1:15012", "CA_ADDRESS=", "XDS_ROOT_CA=" + root}, nil
}

// anybody lets everyone in: nobody else is in this namespace.
type anybody struct{}

func (anybody) Authenticate(context.Context, string) (control.Caller, error) {
	return control.Caller{Namespace: "istio-system", ServiceAccount: "ztunnel"}, nil
}

// fixed is a source that never changes.
type fixed struct {
	objects *source.Objects
	ready   chan struct{}
	never   chan struct{}
}

func newFixed(o *source.Objects) fixed {
	f := fixed{objects: o, ready: make(chan struct{}), never: make(chan struct{})}
	close(f.ready)
	return f
}

func (f fixed) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}
func (f fixed) Ready() <-chan struct{}     { return f.ready }
func (f fixed) Load() *source.Objects      { return f.objects }
func (f fixed) Changed() <-chan struct{}   { return f.never }
func (f fixed) Problems() []source.Problem { return nil }

func objects(o Options) *source.Objects {
	out := &source.Objects{Pods: map[string]*corev1.Pod{}, Services: map[string]*corev1.Service{}}
	for i := range o.Pods {
		addPod(out, member{name: podName(i), namespace: "node", app: podName(i), node: "node", addr: ownAddr(i)}, false)
	}
	for i := range o.Workloads {
		addPod(out, memberOf(i), true)
	}
	for i := range (o.Workloads + perService - 1) / perService {
		m, vip := memberOf(i*perService), vipOf(i).String()
		out.Services[m.namespace+"/"+m.app] = &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Name: m.app, Namespace: m.namespace},
			Spec: corev1.ServiceSpec{ClusterIP: vip, ClusterIPs: []string{vip}, Selector: map[string]string{"app": m.app},
				Ports: []corev1.ServicePort{{Port: 80, TargetPort: intstr.FromInt32(8080), Protocol: corev1.ProtocolTCP}}},
		}
	}
	return out
}

func addPod(out *source.Objects, m member, deployed bool) {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: m.name, Namespace: m.namespace, Labels: map[string]string{"app": m.app},
			Annotations: map[string]string{mesh.AnnotationRedirection: mesh.RedirectionEnabled}},
		Spec: corev1.PodSpec{NodeName: m.node, ServiceAccountName: m.app},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, PodIPs: []corev1.PodIP{{IP: m.addr.String()}},
			Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
	}
	if deployed {
		yes := true
		p.Labels["pod-template-hash"] = "6d4cf56db6"
		p.OwnerReferences = []metav1.OwnerReference{{Kind: "ReplicaSet", Name: m.app + "-6d4cf56db6", Controller: &yes}}
	}
	out.Pods[m.namespace+"/"+m.name] = p
}
