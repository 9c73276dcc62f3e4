// SPDX-License-Identifier: Apache-2.0

// Command report renders result documents for people: `report labs` puts the scenarios of several labs side by side.
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

Puts the results.json of several runs of the scenarios, one a lab, side by side: passed, skipped with its reason, failed.`

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
	if len(args) == 0 || args[0] != "labs" {
		return errUsage
	}
	flags := flag.NewFlagSet("report labs", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.Usage = func() { fmt.Fprintln(stderr, usage) }
	form := flags.String("o", "markdown", "markdown or json")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if flags.NArg() == 0 || (*form != "markdown" && *form != "json") {
		return errUsage
	}
	var docs []schema.ScenarioResults
	var problems []error
	for _, path := range flags.Args() {
		d, err := read(path)
		problems = append(problems, err)
		docs = append(docs, d)
	}
	if err := errors.Join(problems...); err != nil {
		return err
	}
	labs := compare.OfLabs(docs)
	if *form == "markdown" {
		return labs.WriteMarkdown(stdout)
	}
	enc := json.NewEncoder(stdout)
	enc.SetIndent("", "  ")
	return enc.Encode(labs)
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
