// SPDX-License-Identifier: Apache-2.0

package main

import (
	"slices"

	"github.com/spf13/cobra"

	"github.com/ambientlab/ambientlab/topologies/lab"
)

// completion is how cobra asks what may stand next on a command line. Nothing that goes wrong is said: a shell asks.
type completion = func(c *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective)

// completeLabs lists the labs that stand.
func (a *app) completeLabs(c *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	labs, err := a.labs(c.Context())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, l := range labs {
		if l.stands() {
			names = append(names, l.name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completing makes a completion of what a lab holds. most is how many arguments there may be; 0 is any number.
func (a *app) completing(most int, words func(c *cobra.Command, l *lab.Lab) []string) completion {
	return func(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if most > 0 && len(args) >= most {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		l, err := a.attach(c.Context())
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return words(c, l), cobra.ShellCompDirectiveNoFileComp
	}
}

func podWords(c *cobra.Command, l *lab.Lab) []string {
	pods, err := l.Pods(c.Context())
	if err != nil {
		return nil
	}
	words := make([]string, len(pods))
	for i, p := range pods {
		words[i] = p.String()
	}
	return words
}

func podOrNodeWords(c *cobra.Command, l *lab.Lab) []string {
	return slices.Concat(l.Nodes(), podWords(c, l))
}

func nodeWords(_ *cobra.Command, l *lab.Lab) []string { return l.Nodes() }
