// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/control"
	"github.com/ambientlab/ambientlab/dataplane/control/cluster"
	"github.com/ambientlab/ambientlab/dataplane/identity"
	"github.com/ambientlab/ambientlab/dataplane/mesh"
	"github.com/ambientlab/ambientlab/dataplane/source/kube"
)

const caUsage = `usage: control ca rotate STEP [flags]             change the running control plane's authority by one step: its files, or
                                                  the Secret of its cluster as this pod's service account
       control ca rotate STEP --ca-dir DIR        the same of the authority in DIR; a control plane that serves it follows at once
       control ca rotate STEP --kubeconfig FILE   the same of a cluster's Secret; all replicas follow (--in-cluster: this pod's)
       control ca status [flags]                  who still holds a certificate of before the last step, as JSON

A new root in three steps, each of which cuts nobody off once all proxies have followed the one before:
  add            make a new root and trust it too
  sign           sign with the new root; the old one stays trusted
  drop           trust the new root alone
An authority below the root, in one step:
  intermediate   have the root sign an intermediate authority, and sign with that

A step is refused while the running control plane knows of proxies that are behind; --force does it all the same.
`

// stepTimeout bounds the question to the running control plane.
const stepTimeout = 5 * time.Second

// authority runs the sub-command that is about the authority's files.
func authority(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	fs := flag.NewFlagSet("control ca", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() { fmt.Fprint(stderr, caUsage); fs.PrintDefaults() }
	o := &options{}
	fs.StringVar(&o.caDir, "ca-dir", "", "`directory` of the authority's key and roots, if not the running control plane's")
	fs.StringVar(&o.kubeconfig, "kubeconfig", "", "`file` that names the API server whose Secret "+cluster.SecretName+" has them")
	fs.BoolVar(&o.inCluster, "in-cluster", false, "the same of the cluster that this runs in")
	fs.StringVar(&o.RootNamespace, "root-namespace", "", "`namespace` of that Secret (default the running control plane's, or istio-system)")
	domain := fs.String("trust-domain", mesh.DefaultTrustDomain, "name in a new root")
	server := fs.String("control", "http://127.0.0.1:15014", "`address` of the running control plane's --http; none if empty")
	force := fs.Bool("force", false, "do not ask who is behind")
	words := 0
	for words < len(args) && !strings.HasPrefix(args[words], "-") {
		words++
	}
	if err := fs.Parse(args[words:]); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return &usageError{err}
	}
	switch verb := strings.Join(args[:words], " "); {
	case verb == "status":
		return status(ctx, *server, stdout)
	case strings.HasPrefix(verb, "rotate "):
		before, err := followed(ctx, *server, *force)
		if err == nil {
			err = o.locate(before)
		}
		if err == nil {
			err = o.rotate(ctx, strings.TrimPrefix(verb, "rotate "), *domain)
		}
		if err != nil || before == nil {
			return err
		}
		return served(ctx, *server, before.Version, stdout)
	default:
		return &usageError{fmt.Errorf("%q is not understood\n%s", "ca "+verb, caUsage)}
	}
}

// locate takes the authority of the running control plane, unless another is named. What that says is true where it runs.
func (o *options) locate(running *control.AuthorityStatus) error {
	named := o.caDir != "" || o.cluster()
	if running == nil {
		running = &control.AuthorityStatus{}
	}
	o.RootNamespace = cmp.Or(o.RootNamespace, running.Namespace, "istio-system")
	switch {
	case named:
	case running.Directory != "":
		if _, err := os.Stat(running.Directory); err != nil {
			return fmt.Errorf("the control plane's authority is not here: run this in its pod, or give --ca-dir: %w", err)
		}
		o.caDir = running.Directory
	case running.Namespace != "":
		o.inCluster = true
	default:
		return &usageError{errors.New("no control plane says where its authority is: give --ca-dir (or --kubeconfig, or --in-cluster)")}
	}
	return nil
}

func (o *options) rotate(ctx context.Context, step, domain string) error {
	var store identity.Store = identity.Directory(o.caDir)
	if o.caDir == "" {
		api, err := kube.Connect(o.kubeconfig, cluster.Manager)
		if err != nil && o.kubeconfig == "" {
			return fmt.Errorf("the authority is a Secret, and this is no pod of its cluster that may read it (--kubeconfig names the cluster): %w", err)
		}
		if err != nil {
			return err
		}
		if store, err = o.store(api); err != nil {
			return err
		}
	}
	switch step {
	case "add":
		return identity.AddRoot(ctx, store, domain)
	case "sign":
		return identity.SignWithNewRoot(ctx, store)
	case "drop":
		return identity.DropOldRoots(ctx, store)
	case "intermediate":
		return identity.NewIntermediate(ctx, store, domain)
	default:
		return &usageError{fmt.Errorf("no step %q: there are add, sign, drop and intermediate", step)}
	}
}

// followed asks the running control plane, if there is one to ask, where it stands. It reports, as an error, who is behind.
func followed(ctx context.Context, server string, force bool) (*control.AuthorityStatus, error) {
	if server == "" {
		return nil, nil
	}
	s, err := ask(ctx, server)
	switch {
	case err != nil && force:
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("who is behind is not known (--force does the step all the same, --control names another address): %w", err)
	case s.Ready() || force:
		return s, nil
	case len(s.Behind) > 0:
		b := s.Behind[0]
		return nil, fmt.Errorf("%d certificates are of before the last step, that of %s for %s until %s: wait, or --force",
			len(s.Behind), b.Holder, b.Identity, b.Until.Format(time.RFC3339))
	default:
		return nil, fmt.Errorf("the control plane was restarted: certificates that it does not know of may be good until %s: wait, or --force",
			s.UnknownUntil.Format(time.RFC3339))
	}
}

// served waits until the running control plane has taken the step over.
func served(ctx context.Context, server string, version int, stdout io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		s, err := ask(ctx, server)
		if err == nil && s.Version > version {
			fmt.Fprintf(stdout, "in force: version %d, %d roots\n", s.Version, len(s.Roots))
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("the files are changed, but %s does not serve them (is --ca-dir its directory? its log says what is wrong): %w",
				server, errors.Join(ctx.Err(), err))
		}
	}
}

func status(ctx context.Context, server string, stdout io.Writer) error {
	s, err := ask(ctx, server)
	if err != nil {
		return err
	}
	enc := json.NewEncoder(stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(s)
}

func ask(ctx context.Context, server string) (*control.AuthorityStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(server, "/")+"/debug/ca", nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("ask the control plane: %w", err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("ask the control plane: %s", res.Status)
	}
	s := &control.AuthorityStatus{}
	if err := json.NewDecoder(res.Body).Decode(s); err != nil {
		return nil, fmt.Errorf("ask the control plane: %w", err)
	}
	return s, nil
}
