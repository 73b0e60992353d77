# What the README shows and CI runs. Everything builds the whole workspace with the dev profile, so that RocksDB is compiled once: naming
# single packages would change its features and compile it again.

CARGO ?= cargo
TARGET_DIR := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
FLOTILLA := $(TARGET_DIR)/debug/flotilla
DEMO_ARGS ?=

.PHONY: sim sim-bugs help demo test build release fmt fmt-check lint doc compat bench-peers deps clean-compat

help:
	@echo "make demo      three stores, real data, a store killed under load, every write verified"
	@echo "make test      the whole test suite"
	@echo "make sim       500 seeds of the simulator, 60 simulated seconds each, on two cores"
	@echo "make sim-bugs  shows that the simulator finds every deliberate bug"
	@echo "make build     the flotilla command, in $(FLOTILLA)"
	@echo "make release   the same, optimized; compiles RocksDB once more"
	@echo "make fmt       format; make fmt-check only looks"
	@echo "make lint      clippy and rustdoc, warnings are errors"
	@echo "make compat    the raw tests of the crate tikv-client 0.4.0 against a playground"
	@echo "make bench-peers  the consensus core beside raft-rs and openraft; installs protoc where it is missing"
	@echo "make deps      check for what is needed to build, and install libclang"

demo: build
	$(FLOTILLA) demo $(DEMO_ARGS)

test: deps
	$(CARGO) test --workspace

# The simulator needs no RocksDB: it is built optimized, in a folder of its own so that the features of shared crates do not change.
SIM := $(CARGO) run --quiet --release --target-dir $(TARGET_DIR)/sim -p flotilla-sim

sim:
	$(CARGO) test --quiet --release --target-dir $(TARGET_DIR)/sim -p flotilla-sim --test determinism
	$(SIM) -- --group --seeds 0..500 --quiet
	$(SIM) -- --seeds 0..500 --secs 60 --threads 2 --quiet

sim-bugs:
	$(SIM) --features seeded-bugs -- --bugs --seeds 0..2000 --threads 2

build: deps
	$(CARGO) build --workspace

release: deps
	$(CARGO) build --workspace --release

fmt:
	$(CARGO) fmt --all

fmt-check:
	$(CARGO) fmt --all -- --check

lint: deps
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" $(CARGO) doc --workspace --no-deps

# RocksDB is C++, and its Rust bindings are made with libclang.
deps:
	@missing=""; \
	for tool in $(CARGO) g++ gcc make; do command -v $$tool >/dev/null 2>&1 || missing="$$missing $$tool"; done; \
	if [ -n "$$missing" ]; then \
	  echo "missing:$$missing. Rust comes with rustup, the others with: apt-get install build-essential" >&2; exit 1; \
	fi
	@if tools/find-libclang; then exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then as_root=""; elif command -v sudo >/dev/null 2>&1; then as_root=sudo; else as_root=none; fi; \
	if [ "$$as_root" = none ] || ! command -v apt-get >/dev/null 2>&1; then \
	  echo "libclang is missing, which RocksDB's bindings need. Install it, on Debian with: apt-get install libclang-dev" >&2; exit 1; \
	fi; \
	echo "libclang is missing, which RocksDB's bindings need: installing Debian's package libclang-dev"; \
	$$as_root apt-get update -q && $$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qy libclang-dev

# The crate's package from the registry holds its own integration tests. They are compiled apart from this workspace.
compat: build
	FLOTILLA=$(FLOTILLA) CARGO=$(CARGO) TARGET_DIR=$(TARGET_DIR) tools/compat

# A package outside of this workspace: raft-rs needs protoc to build.
bench-peers:
	@if ! command -v protoc >/dev/null 2>&1; then \
	  echo "protoc is missing, which raft-rs needs: installing Debian's package protobuf-compiler"; \
	  if [ "$$(id -u)" = 0 ]; then as_root=""; else as_root=sudo; fi; \
	  $$as_root apt-get update -q && $$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qy protobuf-compiler; \
	fi
	cd benches/peers && $(CARGO) run --release --bin heap
	cd benches/peers && $(CARGO) run --release --bin rounds
	cd benches/peers && $(CARGO) bench
