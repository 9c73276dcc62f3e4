// SPDX-License-Identifier: Apache-2.0

// Command report renders result documents for people: `report labs` puts the scenarios of several labs side by side, `report
// failures` says what failed and how.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/ambientlab/ambientlab/reports/compare"
	"github.com/ambientlab/ambientlab/reports/schema"
)

const usage = `usage: report labs [-o markdown|json] RESULTS...
       report failures [--lines N] RESULTS...

labs      puts the results.json of several runs of the scenarios, one a lab, side by side: passed, skipped with its reason, failed
failures  says of each scenario that failed where it is, how it failed in at most N lines (20), and where its evidence lies`

// errUsage is a mistake on the command line.
var errUsage = errors.New(usage)

func main() {
	err := run(os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		fmt.Fprintln(os.Stderr, err)
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

func run(args []string, stdout, stderr io.Writer) error {
	if len(args) == 1 && (args[0] == "-h" || args[0] == "--help" || args[0] == "help") {
		_, err := fmt.Fprintln(stdout, usage)
		return err
	}
	if len(args) == 0 {
		return errUsage
	}
	flags := flag.NewFlagSet("report "+args[0], flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprintln(stderr, usage) }
	switch args[0] {
	case "labs":
		return labs(flags, args[1:], stdout)
	case "failures":
		return failures(flags, args[1:], stdout)
	default:
		return errUsage
	}
}

func labs(flags *flag.FlagSet, args []string, stdout io.Writer) error {
	form := flags.String("o", "markdown", "markdown or json")
	docs, err := documents(flags, args)
	if err != nil {
		return err
	}
	labs := compare.OfLabs(docs)
	switch *form {
	case "markdown":
		return labs.WriteMarkdown(stdout)
	case "json":
		enc := json.NewEncoder(stdout)
		enc.SetIndent("", "  ")
		return enc.Encode(labs)
	default:
		return errUsage
	}
}

func failures(flags *flag.FlagSet, args []string, stdout io.Writer) error {
	lines := flags.Int("lines", 20, "of a failure's reason, at most")
	docs, err := documents(flags, args)
	if err != nil {
		return err
	}
	if *lines < 1 {
		return errUsage
	}
	for _, d := range docs {
		if err := compare.WriteFailures(stdout, d, *lines); err != nil {
			return err
		}
	}
	return nil
}

// documents are those that the arguments name; it reports all that cannot be read at once.
func documents(flags *flag.FlagSet, args []string) ([]schema.ScenarioResults, error) {
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	if flags.NArg() == 0 {
		return nil, errUsage
	}
	var docs []schema.ScenarioResults
	var problems []error
	for _, path := range flags.Args() {
		d, err := read(path)
		problems = append(problems, err)
		docs = append(docs, d)
	}
	return docs, errors.Join(problems...)
}

func read(path string) (schema.ScenarioResults, error) {
	f, err := os.Open(path)
	if err != nil {
		return schema.ScenarioResults{}, fmt.Errorf("read results: %w: `make e2e` writes them", err)
	}
	defer f.Close()
	d, err := schema.Decode(f)
	if err != nil {
		return d, fmt.Errorf("%s: %w", path, err)
	}
	return d, nil
}
