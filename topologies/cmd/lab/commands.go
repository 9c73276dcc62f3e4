// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
)

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:   "lab",
		Short: "A service mesh in namespaces of this machine, or on a Kubernetes cluster",
		Long: "lab brings up a whole ambient mesh: nodes, pods, a control plane, and a ztunnel and a CNI agent per node. By default it is\n" +
			"made of Linux namespaces and processes of this machine, which needs user namespaces, or root; with `lab up --driver` it\n" +
			"stands in a kind cluster of its own, or on a cluster that is there. It leaves nothing behind. All commands work alike on\n" +
			"all of them.",
		SilenceErrors: true, SilenceUsage: true,
		PersistentPreRunE: func(c *cobra.Command, _ []string) error { return a.checkOutput(c) },
	}
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(mistake)
	root.PersistentFlags().StringVar(&a.lab, "lab", "", "which lab, if several stand: NAME or DRIVER/NAME")
	root.PersistentFlags().StringVar(&a.kubeconfig, "kubeconfig", "", "the lab on the cluster of this `file`, instead of those of this machine")
	root.PersistentFlags().StringVar(&a.context, "context", "", "the lab on the cluster of this context of the kubeconfig")
	root.PersistentFlags().StringVarP(&a.output, "output", "o", "text", "text or json; some commands have more")
	_ = root.RegisterFlagCompletionFunc("lab", a.completeLabs) // it fails only for a flag that is not there
	root.AddCommand(a.upCommand(), a.downCommand(), a.listCommand(), a.psCommand(), a.execCommand(), a.callCommand(), a.traceCommand(),
		a.logsCommand(), a.inspectCommand(), a.captureCommand(), a.certCommand(), a.zcCommand(), a.dumpCommand(), a.debugCommand(), a.graphCommand(), a.topologiesCommand(), a.checkCommand(),
		a.manifestsCommand(), a.imageCommand(), a.gcCommand(), a.holdCommand())
	usageErrors(root)
	root.Args = func(_ *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usageError{err: fmt.Errorf("unknown command %q", args[0])}
		}
		return nil
	}
	root.RunE = func(c *cobra.Command, _ []string) error {
		return errors.Join(c.Help(), usageError{err: errors.New("no command")})
	}
	return root
}

// usageErrors makes what is wrong with the arguments of a command, or of one below it, a mistake.
func usageErrors(c *cobra.Command) {
	for _, c := range c.Commands() {
		if check := c.Args; check != nil {
			c.Args = func(c *cobra.Command, args []string) error {
				if err := check(c, args); err != nil {
					return mistake(c, fmt.Errorf("%s: %w", name(c), err))
				}
				return nil
			}
		}
		usageErrors(c)
	}
}

// Annotations of commands.
const (
	noJSON  = "no-json" // why a command has no JSON form
	outputs = "outputs" // what -o may be besides text and json, separated by spaces; "*.svg" is a file's name
)

// checkOutput says whether a command has the form that -o asks for.
func (a *app) checkOutput(c *cobra.Command) error {
	if a.output == "json" && c.Annotations[noJSON] != "" {
		return mistake(c, fmt.Errorf("%s: -o json means nothing here: %s", name(c), c.Annotations[noJSON]))
	}
	want := append([]string{"text", "json"}, strings.Fields(c.Annotations[outputs])...)
	for _, form := range want {
		if suffix, isFile := strings.CutPrefix(form, "*"); a.output == form || isFile && strings.HasSuffix(a.output, suffix) && a.output != suffix {
			return nil
		}
	}
	last := len(want) - 1
	return mistake(c, fmt.Errorf("-o %s: want %s or %s", a.output, strings.Join(want[:last], ", "), want[last]))
}

// name is a command's name below the program: "zc workloads".
func name(c *cobra.Command) string {
	return strings.TrimPrefix(c.CommandPath(), c.Root().Name()+" ")
}

// mistake is a usageError about a command.
func mistake(c *cobra.Command, err error) error {
	if !c.HasParent() {
		return usageError{err: err}
	}
	return usageError{err: err, command: name(c)}
}

func (a *app) downCommand() *cobra.Command {
	return &cobra.Command{
		Use: "down [LAB]", Short: "Take a lab down", Args: cobra.MaximumNArgs(1),
		Long: "Takes a lab down: one of namespaces, or a kind cluster with all that is in it. With --kubeconfig or --context it removes\n" +
			"the lab from that cluster, which stands on.",
		Example:           "  lab down\n  lab down three-nodes\n  lab down --kubeconfig cluster.conf",
		Annotations:       map[string]string{noJSON: "it prints nothing"},
		ValidArgsFunction: a.completeLabs,
		RunE: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				a.lab = args[0]
			}
			return a.down(c.Context())
		},
	}
}

func (a *app) listCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the labs that stand, and those of which files are left", Args: cobra.NoArgs,
		Example: "  lab list\n  lab list -o json",
		RunE:    func(c *cobra.Command, _ []string) error { return a.list(c.Context()) },
	}
}

func (a *app) psCommand() *cobra.Command {
	return &cobra.Command{
		Use: "ps", Short: "List the pods of a lab", Args: cobra.NoArgs,
		Example: "  lab ps\n  lab ps -o json",
		RunE:    func(c *cobra.Command, _ []string) error { return a.ps(c.Context()) },
	}
}

func (a *app) execCommand() *cobra.Command {
	var tty bool
	c := &cobra.Command{
		Use: "exec POD -- COMMAND...", Short: "Run a command in a pod; its exit code is this program's",
		Long: "Runs a command in a pod, with the pod's rights. Its exit code is this program's: 128+N if signal N ended it, 127 if\n" +
			"there is no such command, 126 if it cannot be executed. Ctrl-C kills it. Standard input is always passed on, with -i\n" +
			"or without. With -t the command gets a terminal of the pod, as large as this one, and Ctrl-C and the like are keys that\n" +
			"the command sees. It has no JSON form: what the command prints is passed on.",
		Example:           "  lab exec web -- cat /etc/resolv.conf\n  lab exec -it shop/web -- bash\n  echo hello | lab exec web -- tr a-z A-Z",
		Annotations:       map[string]string{noJSON: "what the command prints is passed on"},
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: a.completing(1, podWords),
		RunE: func(c *cobra.Command, args []string) error {
			argv := args[1:]
			for len(argv) > 0 && len(argv[0]) > 1 && argv[0][0] == '-' && argv[0] != "--" {
				if err := c.Flags().Parse(argv[:1]); err != nil { // of ours, as in `exec POD -it -- sh`: no command is called like that
					return mistake(c, err)
				}
				argv = argv[1:]
			}
			if len(argv) > 0 && argv[0] == "--" {
				argv = argv[1:]
			}
			if len(argv) == 0 {
				return mistake(c, errors.New("exec: no command after --"))
			}
			if tty {
				return a.execTerminal(c, args[0], argv)
			}
			return a.exec(c.Context(), args[0], argv)
		},
	}
	c.Flags().BoolP("stdin", "i", true, "pass standard input on, as is done anyway")
	c.Flags().BoolVarP(&tty, "tty", "t", false, "give the command a terminal")
	c.Flags().SetInterspersed(false) // what follows the pod is the command's
	return c
}

func (a *app) callCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "call POD URL [-- FLAG...]", Short: "Make a call from a pod, or many",
		Long: "Makes a call from a pod, or many: flags of the call go after --. It prints a line per call, or all there is to\n" +
			"know with -o json; it exits with 1 if a call failed.\n\n" + callFlags(),
		Example: "  lab call web http://cart\n  lab call shop/web tcp://cart:9000 -- --count 3",
		Args:    cobra.MinimumNArgs(2), ValidArgsFunction: a.completing(1, podWords),
		RunE: func(c *cobra.Command, args []string) error { return a.call(c.Context(), args[0], args[1], args[2:]) },
	}
	c.SetFlagErrorFunc(callFlagError)
	return c
}

func (a *app) traceCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "trace POD URL [-- FLAG...]", Short: "Make a call from a pod and draw the hops that it took",
		Long: "Makes one call from a pod and draws the hops that it took. Flags of the call go after --: those of `lab call` but\n" +
			"--count, --concurrency and --duration. It exits with 1 if the call failed.",
		Example: "  lab trace web http://cart\n  lab trace shop/web http://cart -- --family 6",
		Args:    cobra.MinimumNArgs(2), ValidArgsFunction: a.completing(1, podWords),
		RunE: func(c *cobra.Command, args []string) error { return a.trace(c.Context(), args[0], args[1], args[2:]) },
	}
	c.SetFlagErrorFunc(callFlagError)
	return c
}

func callFlagError(c *cobra.Command, err error) error {
	return mistake(c, fmt.Errorf("%w: flags of the call go after --, `lab call --help` lists them", err))
}

func (a *app) inspectCommand() *cobra.Command {
	return &cobra.Command{
		Use: "inspect POD|node/NAME|external/NAME", Short: "Show links, routes, rules and sockets of a pod, a node or an external host",
		Example: "  lab inspect web\n  lab inspect node/node1 -o json",
		Args:    cobra.ExactArgs(1), ValidArgsFunction: a.completing(1, podWords),
		RunE: func(c *cobra.Command, args []string) error { return a.inspect(c.Context(), args[0]) },
	}
}

func (a *app) topologiesCommand() *cobra.Command {
	return &cobra.Command{
		Use: "topologies", Short: "List the topologies that come with this program", Args: cobra.NoArgs,
		Example: "  lab topologies",
		RunE:    func(*cobra.Command, []string) error { return a.topologies() },
	}
}

func (a *app) checkCommand() *cobra.Command {
	return &cobra.Command{
		Use: "check TOPOLOGY", Short: "Say everything that is wrong with a topology, and touch nothing", Args: cobra.ExactArgs(1),
		Example: "  lab check my-topology.yaml",
		RunE:    func(_ *cobra.Command, args []string) error { return a.check(args[0]) },
	}
}

func (a *app) holdCommand() *cobra.Command {
	var dir, bin string
	var detach bool
	c := &cobra.Command{
		Use: "hold", Hidden: true, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return a.hold(c.Context(), dir, bin, detach) },
	}
	c.Flags().StringVar(&dir, "dir", "", "the lab's directory")
	c.Flags().StringVar(&bin, "bin", "", "the directory of the binaries")
	c.Flags().BoolVar(&detach, "detach", false, "do not end with the pipe")
	return c
}
