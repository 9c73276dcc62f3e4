// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"

	"github.com/ambientlab/ambientlab/dataplane/identity"
	"github.com/ambientlab/ambientlab/dataplane/source/kube"
)

const (
	// SecretName is that of the authority's files, in the root namespace.
	SecretName = "istio-ca-secret"
	// issuerKey has the signer's own certificate: we derive it, others look for it.
	issuerKey  = "ca-cert.pem"
	secretType = "istio.io/ca-root"
)

// Secret is an authority's store that all replicas share. The API server settles who was first: the first replica makes it,
// the others read it, and of two changes at once one is made again on top of the other.
type Secret struct {
	namespace string
	client    corev1client.CoreV1Interface
}

var _ identity.Store = (*Secret)(nil)

// NewSecret is the store in namespace; it does no I/O.
func NewSecret(c *kube.Cluster, namespace string) (*Secret, error) {
	client, err := corev1client.NewForConfig(c.Config())
	if err != nil {
		return nil, fmt.Errorf("open authority's Secret: %w", err)
	}
	return &Secret{namespace: namespace, client: client}, nil
}

// String implements identity.Store.
func (s *Secret) String() string { return "Secret " + s.namespace + "/" + SecretName }

// Read implements identity.Store.
func (s *Secret) Read(ctx context.Context) (identity.Files, error) {
	_, files, err := s.get(ctx)
	return files, err
}

// get reads the Secret; nil if there is none.
func (s *Secret) get(ctx context.Context) (*corev1.Secret, identity.Files, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	secret, err := s.client.Secrets(s.namespace).Get(ctx, SecretName, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", s, err)
	}
	files := identity.Files{}
	for name, data := range secret.Data {
		if strings.HasSuffix(name, ".pem") && len(data) > 0 {
			files[name] = data
		}
	}
	return secret, files, nil
}

// Change implements identity.Store; all edits are one write.
func (s *Secret) Change(ctx context.Context, step func(identity.Files) ([]identity.Edit, error)) error {
	for {
		secret, files, err := s.get(ctx)
		if err != nil {
			return err
		}
		edits, err := step(files)
		if err != nil || len(edits) == 0 {
			return err
		}
		err = s.put(ctx, secret, files, files.Apply(edits))
		if !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
			return err
		}
	}
}

func (s *Secret) put(ctx context.Context, secret *corev1.Secret, before, after identity.Files) error {
	issuer, err := after.Issuer()
	if err != nil {
		return fmt.Errorf("change %s: %w", s, err)
	}
	after[issuerKey] = issuer
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if secret == nil {
		secret = &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: SecretName, Namespace: s.namespace}, Type: secretType, Data: after}
		_, err = s.client.Secrets(s.namespace).Create(ctx, secret, metav1.CreateOptions{FieldManager: Manager})
	} else {
		secret = secret.DeepCopy()
		maps.DeleteFunc(secret.Data, func(name string, _ []byte) bool { _, ours := before[name]; return ours })
		if secret.Data == nil {
			secret.Data = map[string][]byte{}
		}
		maps.Copy(secret.Data, after)
		// Its resourceVersion makes this fail if somebody was faster.
		_, err = s.client.Secrets(s.namespace).Update(ctx, secret, metav1.UpdateOptions{FieldManager: Manager})
	}
	if err != nil {
		return fmt.Errorf("change %s: %w", s, err)
	}
	return nil
}

// Watch implements identity.Store.
func (s *Secret) Watch(ctx context.Context, _ *slog.Logger, changed func()) {
	m := newMirror(func(any) struct{} { return struct{}{} }, changed)
	m.run(ctx, named(s.client.RESTClient(), "secrets", s.namespace, SecretName))
}
