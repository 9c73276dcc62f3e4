// SPDX-License-Identifier: Apache-2.0

package attack

import (
	"flag"
	"fmt"
	"io"
	"net"

	"github.com/ambientlab/ambientlab/topologies/workload/credential"
)

// Parse reads the arguments of `workload attack`. Messages about usage go to stderr.
func Parse(args []string, stderr io.Writer) (Config, error) {
	var c Config
	var cert string
	fs := flag.NewFlagSet("workload attack", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Usage = func() {
		_, _ = fmt.Fprint(stderr, "usage: workload attack KIND --to ADDR [flags]\n\nKIND with a certificate:\n")
		for i, certificate := range []bool{true, false} {
			if i == 1 {
				_, _ = fmt.Fprint(stderr, "KIND without:\n")
			}
			for _, name := range Kinds(certificate) {
				_, _ = fmt.Fprintf(stderr, "  %-18s %s\n", name, kinds[name].help)
			}
		}
		fs.PrintDefaults()
	}
	fs.StringVar(&c.To, "to", "", "`address` of the victim's HBONE port, as 10.0.0.2:15008")
	fs.StringVar(&c.Authority, "authority", "", "`address` of an echo application behind it (default: port 9000 of --to)")
	fs.StringVar(&c.Download, "download", "", "`address` of an HTTP application behind it (default: port 8080 of --to)")
	fs.StringVar(&cert, "cert", "", "`directory` that `workload cert` wrote")
	fs.IntVar(&c.Connections, "connections", 4, "how many are open at a time")
	fs.DurationVar(&c.Duration, "duration", 0, "how long (default 10s)")
	kind := ""
	if len(args) > 0 && args[0] != "" && args[0][0] != '-' {
		kind, args = args[0], args[1:]
	}
	if err := fs.Parse(args); err != nil {
		return c, err
	}
	c.Kind = kind
	if kind == "" || fs.NArg() > 0 {
		fs.Usage()
		return c, fmt.Errorf("want one KIND and then flags")
	}
	host, _, err := net.SplitHostPort(c.To)
	if err != nil {
		return c, fmt.Errorf("--to %q: want host:port", c.To)
	}
	if c.Authority == "" {
		c.Authority = net.JoinHostPort(host, "9000")
	}
	if c.Download == "" {
		c.Download = net.JoinHostPort(host, "8080")
	}
	if cert != "" {
		if c.TLS, err = credential.Load(cert); err != nil {
			return c, err
		}
	}
	return c, nil
}
