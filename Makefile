# The commands of a newcomer. Rust is assumed; what else is missing is installed when this runs as root, and named otherwise (tests/tools/need.sh).
# Everything else is in `banger-bench` (tests/src/bench).

SUITE ?=
ONLY ?=
SECONDS ?=

# What takes long to make and fits other checkouts, too: the host VM's image and tools of cargo.
export BANGER_BENCH_CACHE ?= $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/banger-bench
export PATH := $(PATH):/usr/sbin:/sbin:$(BANGER_BENCH_CACHE)/tools/bin

NEED = tests/tools/need.sh
# With the features that the tests have: a package by itself would want its dependencies built once more.
BUILD_TESTED = cargo build --quiet --locked --workspace --bins --tests
BENCH = cargo run --quiet --locked --package banger-tests --bin banger-bench --

.PHONY: help demo record test host-test host-shell bench packages fuzz budgets fmt lint

help:
	@echo 'make demo                 banger at work, from package to guest and back, in a host VM'
	@echo 'make test                 every check, every suite or a sample of it; what CI runs'
	@echo 'make record               a recording of the way from the package to a shell in a guest'
	@echo 'make host-test SUITE=...  suites in the host VM (ONLY=... for some scenarios; no SUITE: all)'
	@echo 'make host-shell           a root shell in a host VM that has the package and the suites'
	@echo 'make bench                timings, in the host VM and of imports here (ONLY=images, reconcile or guests)'
	@echo 'make packages             the .deb and the .rpm, checked'
	@echo 'make fuzz                 fuzzes each target for five minutes (SECONDS=..., ONLY=...)'
	@echo 'make budgets              the helper against its budgets'
	@echo 'make fmt, make lint       format; clippy, dependency rules, who may use whom, links in comments'

demo:
	@$(NEED) build vm packages
	@$(BENCH) demo

record:
	@$(NEED) build vm packages
	@$(BENCH) record

test:
	@$(NEED) build vm packages deny nextest images
	@$(BUILD_TESTED)
	@target/debug/banger-bench test

host-test:
	@$(NEED) build vm packages
	@$(BENCH) host-test $(SUITE) $(if $(ONLY),--only '$(ONLY)')

host-shell:
	@$(NEED) build vm packages
	@$(BENCH) shell

bench:
	@$(NEED) build vm packages images
	@$(BENCH) bench $(ONLY)

packages:
	@$(NEED) build packages
	@$(BENCH) packages

fuzz:
	@$(NEED) build
	@$(BENCH) fuzz $(if $(SECONDS),--seconds '$(SECONDS)') $(if $(ONLY),--only '$(ONLY)')

budgets:
	@$(NEED) build
	@$(BENCH) budgets

fmt:
	cargo fmt --all
	cargo fmt --manifest-path fuzz/Cargo.toml

lint:
	@$(NEED) build deny
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	cargo deny --offline --locked check bans licenses sources
	@$(BENCH) layers
	RUSTDOCFLAGS='-D warnings -A rustdoc::private-intra-doc-links' cargo doc --quiet --workspace --no-deps --locked --document-private-items
