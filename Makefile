# Everything that is done with this repository, here and in CI (.ci/run is make test).
# Needs Go and make; the race detector also needs a C compiler and is left out without.

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test check unit yaegi fuzz engine event e2e e2e-kubernetes kubernetes docs modules lint bench bench-quick bench-engine traefik clean

# How many inputs each fuzz target gets. A time such as 30s goes, too, but then Go fails now
# and then with "context deadline exceeded" (golang/go#75804, until Go 1.27).
FUZZTIME ?= 3000x

race := $(if $(filter 1,$(shell go env CGO_ENABLED 2>/dev/null)),-race)
step = @printf '\n\033[1m==> %s\033[0m\n' '$(1)'

help: ## show this list
	@awk -F ':[^#]*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@printf '\nEnvironment:\n'
	@printf '  %-18s %s\n' \
		'DEMO_PORT' 'port of the site in the demo; any free one when not set' \
		'DEMO_RECEIVER_PORT' 'port of the receiver in the demo; likewise' \
		'DEMO_INSPECTOR_PORT' 'port of the page in the demo; likewise' \
		'DEMO_BROWSER' 'what opens that page; none: nothing does' \
		'DEMO_ONCE=1' 'ends the demo after its sample requests' \
		'NO_COLOR=1' 'no colours in the demo' \
		'TRAEFIK_BIN' 'a Traefik to use instead of building the pinned version' \
		'FUZZTIME' 'inputs of each fuzz target, or how long it runs (30s); now $(FUZZTIME)'

demo: ## watch the plugin at work: Traefik, a site and two receivers on this machine, one with a page
	@cd test && go build -o ../.cache/demo ./demo
	@# exec, so that signals reach it and not a shell.
	@cd test && exec ../.cache/demo

test: check unit event yaegi fuzz traefik modules kubernetes ## everything, cheap steps first: under 20 minutes and, once, a build of Traefik
	$(call step,all passed)

check: ## gofmt and go vet; and a build for 32 bits, as Traefik runs on small machines, too
	$(call step,gofmt and go vet)
	@bad=$$(gofmt -l $$(find . -name '*.go' -not -path './.cache/*')); \
		if [ -n "$$bad" ]; then echo "not formatted, run gofmt -w:"; echo "$$bad"; exit 1; fi
	go vet ./...
	GOARCH=386 go build ./...
	cd test && go vet ./...

unit: ## the plugin, compiled, with the race detector and in random order
	$(call step,unit tests$(if $(race),, without the race detector: no C compiler))
	test/unit.sh $(race) -count=1 -shuffle=on -timeout 10m ./...

yaegi: ## the same tests as interpreted code, as Traefik runs it, plain and with the race detector
	$(call step,unit tests under Yaegi)
	test/yaegi/run.sh

fuzz: ## each fuzz target with FUZZTIME inputs
	$(call step,fuzzing each target: $(FUZZTIME))
	@grep -rHoE '^func Fuzz[A-Za-z0-9_]+' --include='*_test.go' . | sort | while IFS=: read -r file name; do \
		echo "$${name#func } in $$(dirname "$$file")"; \
		(cd "$$(dirname "$$file")" && go test -run '^$$' -fuzz "^$${name#func }\$$" -fuzztime $(FUZZTIME) .) || exit 1; \
	done

engine: ## the plugin in Yaegi, configured as Traefik does, against scripted receivers
	$(call step,engine tests)
	cd test && go test -count=1 -timeout 15m ./engine/...

event: ## the reader of events that the other tests trust
	$(call step,event tests)
	cd test && go test -count=1 ./event/...

e2e: traefik ## the plugin in a real Traefik
	$(call step,end-to-end tests)
	cd test && go test -count=1 -timeout 20m ./lab/... ./e2e/...

e2e-kubernetes: traefik ## Traefik in a cluster without containers; the first build takes five minutes
	$(call step,Kubernetes)
	test/kubernetes/build.sh
	test/kubernetes/run.sh

# Where the programs are not built, it says so and goes on. With CI=true in the environment, as
# in .ci/run and on GitHub, they are built; there KUBERNETES_SANDBOX=required lets nothing be skipped.
kubernetes: traefik
	$(call step,Kubernetes)
	test/kubernetes/run.sh $(if $(CI),,--if-built)

docs: traefik ## the documentation: examples run, tables are complete, links lead somewhere
	$(call step,documentation tests)
	cd test && go test -count=1 ./docs/...

# One package at a time: what measures time does not share the cores.
modules: traefik ## all tests of the nested modules: engine, event, e2e, docs, demo and examples
	$(call step,tests of the nested modules: this takes most of the time)
	@mkdir -p .cache && rm -f .cache/not-tested
	cd test && NOT_TESTED='$(CURDIR)/.cache/not-tested' go test $(race) -count=1 -p 1 -timeout 20m ./...
	@for mod in $$(find examples test/otlp -name go.mod 2>/dev/null | sort); do \
		echo "cd $$(dirname $$mod) && go vet ./... && go test ./..."; \
		(cd "$$(dirname "$$mod")" && go vet ./... && NOT_TESTED='$(CURDIR)/.cache/not-tested' go test -count=1 -timeout 15m ./...) || exit 1; \
	done
	@# Of packages that pass, go test shows no output, so their tests write it down.
	@if [ -s .cache/not-tested ]; then printf '\n'; sed "s/^/$$(printf '\033[1m')NOT TESTED:$$(printf '\033[0m') /" .cache/not-tested; fi

lint: check ## gofmt, go vet and, if installed, golangci-lint v2
	$(call step,golangci-lint)
	@if ! command -v golangci-lint >/dev/null; then \
		echo "not installed, so only gofmt and go vet looked at the code: https://golangci-lint.run/docs/welcome/install/"; \
	else \
		golangci-lint run ./... && cd test && golangci-lint run ./...; \
	fi

bench: traefik ## CPU, latency, throughput and memory in a real Traefik; ten minutes, updates docs/explanation/performance.md
	$(call step,benchmark; use the machine for nothing else meanwhile)
	@cd test && go build -o ../.cache/bench ./bench
	cd test && exec ../.cache/bench

bench-quick: traefik ## the same in a minute, printed only
	$(call step,quick benchmark)
	@cd test && go build -o ../.cache/bench ./bench
	cd test && exec ../.cache/bench -quick

bench-engine: ## Go benchmarks of the interpreted handler
	$(call step,benchmarks of the interpreted handler)
	cd test && go test -run '^$$' -bench . -benchmem ./engine/...

traefik: ## build the Traefik that tests, benchmark and demo run, if it is not there
	$(call step,Traefik)
	test/traefik/build.sh

clean: ## remove what was built here, Traefik included
	rm -rf .cache test/traefik/bin test/yaegi/bin test/kubernetes/bin
