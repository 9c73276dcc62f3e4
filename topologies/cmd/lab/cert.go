// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/ambientlab/ambientlab/dataplane/identity"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/topologies/driver/netns/labdir"
	"github.com/ambientlab/ambientlab/topologies/lab"
	"github.com/ambientlab/ambientlab/topologies/workload/credential"
)

type certOptions struct {
	out string
	ttl time.Duration
}

func (a *app) certCommand() *cobra.Command {
	var o certOptions
	c := &cobra.Command{
		Use: "cert POD", Short: "Write a certificate of a workload, its key and the mesh's root as files",
		Long: "Signs a certificate of the pod's identity with the lab's authority and writes it as files, for curl, openssl and the\n" +
			"like: " + credential.CertFile + ", " + credential.KeyFile + " and " + credential.RootFile + ", which only their owner can read. It is a new one: the key that ztunnel\n" +
			"has for the workload leaves ztunnel's memory for nobody. Pods see the files where the host has them, but not in /tmp.",
		Example: "  lab cert web --out web-cert\n" +
			"  lab exec batch -- openssl s_client -connect 10.244.1.4:15008 -alpn h2 -cert $PWD/web-cert/cert.pem -key $PWD/web-cert/key.pem",
		Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			if o.ttl <= 0 {
				return mistake(c, fmt.Errorf("--ttl %s: want more than nothing", o.ttl))
			}
			return a.cert(c.Context(), args[0], o)
		},
	}
	c.Flags().StringVar(&o.out, "out", "", "the directory (default: the pod's name with -cert)")
	c.Flags().DurationVar(&o.ttl, "ttl", 24*time.Hour, "how long it is good for")
	return c
}

// written is what the command says in the end.
type written struct {
	Identity string       `json:"identity"`
	Cert     string       `json:"certificate"`
	Key      string       `json:"key"`
	Root     string       `json:"root"`
	NotAfter time.Time    `json:"notAfter"`
	IPs      []netip.Addr `json:"ips"` // of the pod
}

func (a *app) cert(ctx context.Context, pod string, o certOptions) error {
	l, err := a.attach(ctx)
	if err != nil {
		return err
	}
	ref, err := findPod(ctx, l, pod)
	if err != nil {
		return err
	}
	info, err := l.Find(ctx, ref)
	if err != nil {
		return err
	}
	if o.out == "" {
		o.out = ref.Name + "-cert"
	}
	if o.out, err = filepath.Abs(o.out); err != nil {
		return fmt.Errorf("--out %s: %w", o.out, err)
	}
	id := mesh.Identity{TrustDomain: l.Spec.Clusters[0].TrustDomain, Namespace: info.Namespace, ServiceAccount: info.ServiceAccount}
	store, err := authority(ctx, l)
	if err != nil {
		return err
	}
	cert, err := issue(ctx, store, id, o.ttl)
	if err != nil {
		return err
	}
	if err := credential.Save(o.out, cert); err != nil {
		return err
	}
	w := written{
		Identity: id.String(), NotAfter: cert.Leaf.NotAfter, IPs: info.IPs,
		Cert: filepath.Join(o.out, credential.CertFile), Key: filepath.Join(o.out, credential.KeyFile), Root: filepath.Join(o.out, credential.RootFile),
	}
	return a.print(w, func() {
		fmt.Fprintf(a.stdout, "%s until %s\n%s\n%s\n%s\n", w.Identity, w.NotAfter.Format(time.RFC3339), w.Cert, w.Key, w.Root)
	})
}

// errNoAuthority: control makes it when it starts.
var errNoAuthority = errors.New("the lab's authority has no files yet: is its control plane up? (`lab ps`)")

// authority is where the lab's authority keeps its key: a directory that the lab's owner can read, or a Secret of its cluster.
func authority(ctx context.Context, l *lab.Lab) (identity.Store, error) {
	if l.Dir != "" {
		dir := labdir.Dir(l.Dir).CA()
		if files, err := os.ReadDir(dir); err != nil || len(files) == 0 {
			return nil, errors.Join(errNoAuthority, err)
		}
		return identity.Directory(dir), nil
	}
	secret := &corev1.Secret{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Secret"},
		ObjectMeta: metav1.ObjectMeta{Namespace: meshNamespace, Name: authoritySecret},
	}
	if err := l.Get(ctx, secret); err != nil {
		return nil, errors.Join(errNoAuthority, err)
	}
	files := secretFiles{}
	for name, data := range secret.Data {
		if strings.HasSuffix(name, ".pem") && len(data) > 0 {
			files[name] = data
		}
	}
	return files, nil
}

// authoritySecret is the authority's Secret, as with upstream.
const authoritySecret = "istio-ca-secret"

// secretFiles are the files of the authority's Secret. They are read only: the authority is there already.
type secretFiles identity.Files

var errReadOnly = errors.New("the files of " + authoritySecret + " lack something, and only the control plane changes them")

func (f secretFiles) Read(context.Context) (identity.Files, error) { return identity.Files(f), nil }

func (f secretFiles) Change(_ context.Context, step func(identity.Files) ([]identity.Edit, error)) error {
	edits, err := step(identity.Files(f))
	if err == nil && len(edits) > 0 {
		err = errReadOnly
	}
	return err
}

func (f secretFiles) Watch(ctx context.Context, _ *slog.Logger, changed func()) {
	changed()
	<-ctx.Done()
}

func (f secretFiles) String() string { return "Secret " + meshNamespace + "/" + authoritySecret }

// issue signs with the lab's own authority.
func issue(ctx context.Context, store identity.Store, id mesh.Identity, ttl time.Duration) (*identity.Certificate, error) {
	authority, err := identity.OpenAuthority(ctx, store, id.TrustDomain)
	if err != nil {
		return nil, err
	}
	return authority.Issue(id, ttl)
}
