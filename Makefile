# Make is the index; the logic is in Go. `make help` lists what there is.
SHELL := bash
.DEFAULT_GOAL := help

BIN      := $(CURDIR)/bin
CNI      ?=
OUT      ?= $(if $(filter netns,$(LAB)),out,out/$(LAB)$(addprefix -,$(basename $(notdir $(firstword $(subst =, ,$(filter-out kindnet,$(CNI))))))))
LAB      ?= netns
TOPOLOGY ?= three-nodes
FOCUS    ?=
LABELS   ?= !slow
SEED     ?=
PROCS    ?= $(if $(filter netns,$(LAB)),4,$(if $(filter kind,$(LAB)),$(if $(FOCUS)$(filter-out !slow,$(LABELS)),1,2),1))
FUZZTIME ?= 30s
FUZZ     ?= .
KEEP     ?= 0
BENCH    ?=
NODE_IMAGE ?=
CNI_NETWORK_POLICY ?=

override OUT := $(abspath $(OUT))
export CGO_ENABLED ?= 0
export AMBIENTLAB_BIN := $(BIN)

DAEMONS  := ztunnel control cni-agent ambient-cni
PLUGINS  := ptp host-local
LINT      = cd tools/lint && go build -o $(BIN)/tools/golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint

# The scenarios run in another directory, so that a file's name must not be relative.
CNI_FILE  = $(if $(findstring /,$(CNI))$(filter %.yaml %.yml %.json,$(CNI)),$(wildcard $(lastword $(subst =, ,$(CNI)))))
CNI_FROM  = $(if $(CNI_FILE),$(subst $(CNI_FILE),$(abspath $(CNI_FILE)),$(CNI)),$(CNI))

# What a lab needs besides the project's programs.
LAB_NEEDS = $(if $(filter kind,$(LAB)),docker kind node-image)

E2E_FLAGS = --procs=$(PROCS) --timeout=$(if $(filter netns,$(LAB)),20m,60m) -v --randomize-all --fail-on-empty --fail-on-pending --label-filter='$(LABELS)' \
	$(if $(MAKE_TERMOUT),,--no-color) $(if $(FOCUS),--focus='$(FOCUS)') $(if $(SEED),--seed=$(SEED))

##@ People's three

.PHONY: e2e
e2e: deps build $(LAB_NEEDS) ## Run the scenarios on labs (LAB=netns or kind), PROCS= at a time, results in OUT=; FOCUS= and LABELS= choose, SEED= repeats an order, CNI= is as in lab-up
	@mkdir -p $(OUT)
	$(if $(CNI),AMBIENTLAB_CNI='$(CNI_FROM)') $(if $(CNI_NETWORK_POLICY),AMBIENTLAB_CNI_NETWORK_POLICY=1) AMBIENTLAB_E2E=$(LAB) AMBIENTLAB_OUT=$(OUT) AMBIENTLAB_REVISION=$$(git describe --always --dirty 2>/dev/null) go tool ginkgo run $(E2E_FLAGS) ./scenarios

.PHONY: lab-up
lab-up: deps build $(LAB_NEEDS) ## Leave a mesh standing to poke at (LAB=netns or kind; TOPOLOGY=, a file or a name of `bin/lab topologies`; CNI= and CNI_NETWORK_POLICY=1 as in `bin/lab up --help`)
	$(BIN)/lab up $(TOPOLOGY) --driver $(LAB) --detach $(if $(CNI),--cni '$(CNI_FROM)') $(if $(CNI_NETWORK_POLICY),--cni-network-policy)

.PHONY: lab-down
lab-down: build ## Take that mesh down
	$(BIN)/lab down

##@ For contributors

.PHONY: test
test: deps build unit e2e ## All that a change must pass: unit, golden and kernel tests, then the scenarios

.PHONY: unit
unit: deps build ## Unit, golden and kernel tests, and those of the netns driver
	go test ./...

.PHONY: race
race: deps ## The same under the race detector (needs a C compiler)
	CGO_ENABLED=1 go test -race ./...

.PHONY: watch
watch: ## Run what FOCUS= or LABELS= chooses again after each change, on a cluster that stands (LAB=kind) or new namespaces
	@tools/watch.sh LAB='$(LAB)' FOCUS='$(FOCUS)' LABELS='$(LABELS)'

.PHONY: bench
bench: deps build ## Plain TCP, plain relays, bare TLS and two ztunnels in one lab: figures in OUT=bench.json (BENCH=--quick: a minute)
	@mkdir -p $(OUT)
	set -o pipefail; $(BIN)/perf bench --out $(OUT)/bench.json --revision "$$(git describe --always --dirty 2>/dev/null)" $(BENCH) | tee $(OUT)/bench.txt

.PHONY: microbench
microbench: build ## Go benchmarks with allocations (hbone against stock HTTP/2 and bare TLS, catalog, authz, telemetry, idle memory)
	@mkdir -p $(OUT)
	set -o pipefail; go test -run '^$$' -bench . -benchmem ./dataplane/... | tee $(OUT)/microbench.txt

.PHONY: slow
slow: deps ## Tests at their real lengths: streams that stall for three PING timeouts
	go test ./dataplane/hbone -count=1 -timeout 30m -v -run Stall -hbone.slow

.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME= each and sum up; FUZZ= chooses, KEEP=n adds inputs to the corpora
	@FUZZTIME='$(FUZZTIME)' FUZZ='$(FUZZ)' KEEP='$(KEEP)' tools/fuzz.sh

.PHONY: build
build: ## Build the daemons, the commands and the CNI plugins into bin/
	@mkdir -p $(BIN)/cni
	go build -tags grpcnotrace -ldflags '-s -w' -o $(BIN)/ $(addprefix ./dataplane/cmd/,$(DAEMONS)) ./topologies/cmd/... ./topologies/workload/cmd/... ./perf/cmd/... ./reports/cmd/...
	go build -o $(BIN)/cni/ github.com/containernetworking/plugins/plugins/main/ptp github.com/containernetworking/plugins/plugins/ipam/host-local

.PHONY: docker
docker: ## See to a Docker daemon: as root on Debian or Ubuntu, install and start the distribution's where none answers
	@tools/docker.sh

.PHONY: kind
kind: ## Build the pinned kind command into bin/tools/
	@mkdir -p $(BIN)/tools
	cd tools/kind && go build -o $(BIN)/tools/kind sigs.k8s.io/kind

.PHONY: node-image
node-image: build ## Make a kind node image: kind's own where a registry answers, else from Debian packages and Go modules
	go build -trimpath -buildvcs=false -ldflags '-s -w' -o $(BIN)/nodenet ./topologies/cmd/nodenet # the same bytes wherever it is built
	@kindconfigs/nodeimage/build.sh $(NODE_IMAGE)

.PHONY: deps
deps: ## Install what a fresh Debian or Ubuntu lacks, or say what is missing
	@tools/deps.sh

.PHONY: generate
generate: ## Regenerate the protobuf code (protoc is a Debian package: protobuf-compiler) and the definitions of custom resources
	go generate ./...

.PHONY: fmt
fmt: ## Format the code and tidy the module
	gofmt -w $$(git ls-files '*.go')
	go mod tidy

.PHONY: lint
lint: ## Run the linters of .golangci.yml
	@mkdir -p $(BIN)/tools
	$(LINT)
	$(BIN)/tools/golangci-lint run ./...

.PHONY: verify
verify: ## Fail where `make fmt` would change something, or go vet complains
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); echo "run make fmt"; exit 1; }
	go mod tidy -diff
	go vet ./...

.PHONY: darwin
darwin: ## See that the lab command, with the drivers kind and kube, builds for macOS
	GOOS=darwin GOARCH=arm64 CGO_ENABLED=0 go build -o /dev/null ./topologies/cmd/lab
	GOOS=darwin GOARCH=arm64 CGO_ENABLED=0 go vet ./topologies/cmd/lab ./topologies/driver/kind ./topologies/driver/kube

.PHONY: verify-generated
verify-generated: generate ## Fail where `make generate` changes something (needs protoc)
	git diff --exit-code -- '*.pb.go' kindconfigs/install/crds

.PHONY: clean
clean: ## Remove bin/ and out/
	rm -rf $(BIN) $(OUT)

.PHONY: help
help: ## This list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
