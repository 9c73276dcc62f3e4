// SPDX-License-Identifier: Apache-2.0

package credential

import (
	"flag"
	"fmt"
	"io"

	"github.com/ambientlab/ambientlab/dataplane/mesh"
)

// Parse reads the arguments of `workload cert`. Messages about usage go to stderr.
func Parse(args []string, stderr io.Writer) (c Config, out string, err error) {
	fs := flag.NewFlagSet("workload cert", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		_, _ = fmt.Fprintf(stderr, "usage: workload cert --out DIR [flags]\n\nwrites %s, %s and %s\n", CertFile, KeyFile, RootFile)
		fs.PrintDefaults()
	}
	fs.StringVar(&out, "out", "", "`directory` to write to")
	fs.StringVar(&c.CA, "ca", DefaultCA, "`address` of the authority")
	fs.StringVar(&c.TokenFile, "token", DefaultToken, "`file` with a service-account token of audience istio-ca")
	fs.StringVar(&c.RootFile, "root", DefaultRoot, "`file` with the root that the authority's certificate leads to")
	fs.StringVar(&c.TrustDomain, "trust-domain", mesh.DefaultTrustDomain, "of the token's identity")
	fs.DurationVar(&c.TTL, "ttl", 0, "lifetime to ask for (default 24h)")
	fs.Func("identity", "spiffe `URI` to ask for (default: the token's)", func(s string) (err error) {
		c.Identity, err = mesh.ParseIdentity(s)
		return err
	})
	if err := fs.Parse(args); err != nil {
		return c, "", err
	}
	if out == "" || fs.NArg() > 0 {
		fs.Usage()
		return c, "", fmt.Errorf("want --out and no further argument, got %d", fs.NArg())
	}
	return c, out, nil
}
