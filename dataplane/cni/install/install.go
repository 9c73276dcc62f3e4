// SPDX-License-Identifier: Apache-2.0

// Package install puts the CNI plugin on a node and keeps it there: its program among the host's plugins, a kubeconfig for
// it, and an entry at the end of the chain that the runtime uses, which is the first file by name of the directory of network
// configurations. All else in that file stays as it is, its version too. Whoever rewrites the file, or puts another before
// it, has it repaired at once. What is installed outlives the agent: a pod that starts meanwhile must wait, not escape.
// Sources: CNI specification 1.1.0, "Section 1"; libcni's ConfFiles; Istio cni/pkg/install.
package install

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/ambientlab/ambientlab/dataplane/admin"
)

// Entry is the plugin's own part of the chain, as the plugin reads it. Type is its program's name.
type Entry struct {
	Type              string   `json:"type"`
	Kubeconfig        string   `json:"kubeconfig"` // as the host names it
	PluginSocket      string   `json:"pluginSocket"`
	LogSocket         string   `json:"logSocket,omitempty"`
	LogLevel          string   `json:"logLevel,omitempty"`
	ExcludeNamespaces []string `json:"excludeNamespaces,omitempty"`
	AgentPods         string   `json:"agentPods,omitempty"`
}

// Config says what goes where; directories are the host's, as they are seen from here. All fields but the last two must be set.
type Config struct {
	Plugin         string // the program to copy
	BinDir         string
	ConfDir        string
	KubeconfigName string // in ConfDir
	Entry          Entry
	Access         func() (Access, error) // read anew whenever one of its files changes

	Installed func(ok bool) // called with the outcome of everything that was changed; may be nil
	Readiness *admin.Readiness
	Log       *slog.Logger
}

const (
	condition = "install"
	settle    = 50 * time.Millisecond // for a writer who is not done yet
	reminder  = time.Minute           // between two logs of the same trouble
)

// Status is what is installed.
type Status struct {
	Installed bool   `json:"installed"`
	File      string `json:"file,omitempty"` // that has the plugin in its chain
	Trouble   string `json:"trouble,omitempty"`
}

// Installer installs one plugin. Make it with New.
type Installer struct {
	cfg     Config
	entry   *object
	program program
	files   []string // of Access; owned by Run

	mu     sync.Mutex // guards what follows
	status Status
	told   time.Time // when trouble was logged last
}

// New does no I/O.
func New(cfg Config) (*Installer, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Readiness == nil {
		cfg.Readiness = admin.NewReadiness()
	}
	if cfg.Installed == nil {
		cfg.Installed = func(bool) {}
	}
	cfg.Readiness.Pend(condition)
	raw, err := json.Marshal(cfg.Entry)
	if err != nil {
		return nil, err
	}
	entry, err := parseObject(raw)
	if err != nil {
		return nil, err
	}
	return &Installer{
		cfg: cfg, entry: entry, program: program{from: cfg.Plugin, to: filepath.Join(cfg.BinDir, cfg.Entry.Type)},
	}, nil
}

// Status is a copy of what is so now.
func (i *Installer) Status() Status {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.status
}

// Run installs, and repairs what others undo, until ctx ends. It leaves everything in place.
func (i *Installer) Run(ctx context.Context) error {
	w := newWatcher(i.cfg.Log)
	defer w.close()
	for {
		file, err := i.install()
		i.report(file, err)
		w.follow(i.directories())
		if !w.wait(ctx) {
			return nil
		}
	}
}

func (i *Installer) directories() []string {
	dirs := []string{i.cfg.ConfDir, i.cfg.BinDir}
	for _, f := range i.files {
		dirs = append(dirs, filepath.Dir(f))
	}
	return dirs
}

// errNone is no failure: the node's network is not installed yet.
var errNone = errors.New("no network configuration yet: waiting for the cluster's CNI to be installed")

// install makes everything as it should be, the chain last: what it names must be there.
func (i *Installer) install() (file string, err error) {
	copied, err := i.program.install()
	if err != nil {
		return "", err
	}
	written, err := i.writeKubeconfig()
	if err != nil {
		return "", err
	}
	file, chained, err := i.chain()
	for what, did := range map[string]bool{"program": copied, "kubeconfig": written, "chain": chained} {
		if did {
			i.cfg.Log.Info("installed", "what", what, "file", file)
		}
	}
	if (copied || written || chained) && !errors.Is(err, errNone) {
		i.cfg.Installed(err == nil)
	}
	return file, err
}

func (i *Installer) writeKubeconfig() (changed bool, err error) {
	access, err := i.cfg.Access()
	if err != nil {
		return false, err
	}
	i.files = access.Files
	text, err := access.kubeconfig()
	if err == nil {
		changed, err = replace(filepath.Join(i.cfg.ConfDir, i.cfg.KubeconfigName), text, 0o600)
	}
	if err != nil {
		return false, fmt.Errorf("write the plugin's kubeconfig: %w", err)
	}
	return changed, nil
}

// chain puts the plugin into the first network and takes it out of all others.
func (i *Installer) chain() (file string, changed bool, err error) {
	all, bad, err := candidates(i.cfg.ConfDir)
	if err != nil {
		return "", false, fmt.Errorf("read the host's network configurations: %w", err)
	}
	if len(all) == 0 {
		if len(bad) > 0 {
			return "", false, fmt.Errorf("%w (unusable: %w)", errNone, errors.Join(bad...))
		}
		return "", false, errNone
	}
	for _, b := range bad {
		i.cfg.Log.Debug("network configuration passed over", "error", b)
	}
	if file, changed, err = all[0].chainInto(i.entry); err != nil {
		return "", false, err
	}
	var errs []error
	for _, c := range all[1:] {
		if c.path == file {
			continue // the list that has just been written in the place of the first
		}
		undone, err := c.unchain(i.cfg.Entry.Type)
		changed = changed || undone
		errs = append(errs, err)
	}
	return file, changed, errors.Join(errs...)
}

func (i *Installer) report(file string, err error) {
	i.mu.Lock()
	defer i.mu.Unlock()
	was := i.status
	i.status = Status{Installed: err == nil, File: file}
	if err == nil {
		i.cfg.Readiness.Done(condition)
		if !was.Installed || was.File != file {
			i.cfg.Log.Info("CNI plugin is installed", "file", file)
		}
		return
	}
	i.cfg.Readiness.Pend(condition)
	i.status.Trouble = err.Error()
	if i.status.Trouble == was.Trouble && time.Since(i.told) < reminder {
		return
	}
	i.told = time.Now()
	tell := i.cfg.Log.Warn
	if errors.Is(err, errNone) {
		tell = i.cfg.Log.Info
	}
	tell("CNI plugin is not installed", "directory", i.cfg.ConfDir, "error", err)
}

// Uninstall takes away everything that Run has installed, the chain first. Run must have ended.
func (i *Installer) Uninstall() error {
	all, _, err := candidates(i.cfg.ConfDir)
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	errs := []error{err}
	for _, c := range all {
		_, err := c.unchain(i.cfg.Entry.Type)
		errs = append(errs, err)
	}
	errs = append(errs, restore(i.cfg.ConfDir), remove(filepath.Join(i.cfg.ConfDir, i.cfg.KubeconfigName)), remove(i.program.to))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("uninstall the CNI plugin: %w", err)
	}
	return nil
}
