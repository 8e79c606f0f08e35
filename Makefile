# The ways to build, try and test Proximity. `make` alone lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help deps tools build images install uninstall demo demo-down bench bench-link bench-load bench-remote fmt lint test clean-images

target := $(or $(CARGO_TARGET_DIR),target)
agent_target := x86_64-unknown-linux-gnu
whole_workspace := --workspace --all-features --locked

# What `make test` is run with; other versions may find other things.
cargo_deny := 0.20.2
cargo_machete := 0.9.2

help: ## list what can be made
	@sed -nE 's/^([a-z-]+):.*## (.*)/  \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 18

deps: ## install the Debian packages that are missing (root)
	@scripts/install-packages

tools: deps ## install cargo-deny and cargo-machete unless they are there (minutes, once)
	@scripts/install-tools cargo-deny@$(cargo_deny) cargo-machete@$(cargo_machete)

build: deps ## build the release binaries: proximity, testbed, and the static agent
	RUSTFLAGS='-C target-feature=+crt-static' cargo build --profile agent --target $(agent_target) -p agent --locked
	cargo build --release -p cli -p testbed --locked
	@install -m 0755 $(target)/$(agent_target)/agent/proximity-agent $(target)/release/
	@ls -lh $(target)/release/proximity $(target)/release/testbed $(target)/$(agent_target)/agent/proximity-agent

images: build ## build the images of the appliance and of every recipe into /var/cache/proximity/images (root)
	$(target)/release/proximity image build --all

install: build ## install programs, the controller's unit and a configuration on this machine (root)
	@scripts/install

uninstall: ## take what was installed away again; with PURGE=yes the data too (root)
	@scripts/uninstall $(if $(filter yes,$(PURGE)),--purge)

demo: build ## an isolated network and a real app, on a virtual host of this machine (root)
	@scripts/demo

demo-down: ## take everything of the demo away again
	@scripts/demo-down

bench: build ## measure deploys: API call to page, step by step (root)
	@scripts/bench

bench-link: build ## measure commands, sandboxes and copies beside OpenSSH, Docker and Incus (root)
	@scripts/bench-link

bench-load: build ## measure 150 guests, 50 sandboxes at once, 1,000 routes, idle costs; fails when a figure is missed (root)
	@scripts/bench-load

bench-remote: build ## measure remote execution beside ssh, scp and a Python client; fails when a goal is missed (root)
	@scripts/bench-remote

fmt: ## format all sources
	cargo fmt --all

lint: tools ## formatting, clippy, dependency rules
	cargo fmt --all --check
	cargo clippy $(whole_workspace) --all-targets -- -D warnings
	cargo deny --locked --log-level error check --hide-inclusion-graph bans licenses sources
	cargo machete crates

test: lint ## all of lint, then every test: unit, integration, end to end, documentation (root)
	@scripts/test

clean-images: ## remove the cached images
	rm -rf /var/cache/proximity/images
