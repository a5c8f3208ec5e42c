# Every target sets up what it needs; none needs another to have been run first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
NATIVE_INSTALLED := $(VENV)/.native
NATIVE_FILES := $(wildcard native/*.toml native/*.lock native/*.pyi native/src/*.rs)
RUST_NEEDED := $(shell sed -n 's/^rust-version = "\(.*\)"/\1/p' native/Cargo.toml)
RUST_FOUND := $(shell cargo --version 2>/dev/null | cut -d ' ' -f 2)
RUST_ANSWERS := $(shell printf '%s\n' $(RUST_NEEDED) $(RUST_FOUND) | sort -VC && echo $(RUST_FOUND))
# What is built in passing, where it can be: a machine without Rust is no failure.
ifeq ($(RUST_ANSWERS),)
NATIVE := no-rust
else
NATIVE := $(NATIVE_INSTALLED)
endif
RUST_LINTS := $(and $(RUST_ANSWERS),$(shell cargo clippy --version 2>/dev/null && cargo fmt --version))
FUZZ := $(if $(shell cargo +nightly --version 2>/dev/null),fuzz,no-nightly)
CHROMIUM := /usr/bin/chromium
SUDO := $(shell [ "$$(id -u)" = 0 ] || echo "sudo -n")
# More than cores: most tests wait. tests/conftest.py says which tests stay in one process.
PYTEST_WORKERS ?= 3
PYTEST := $(BIN)/pytest -n $(PYTEST_WORKERS)
CARGO_FUZZ := 0.13.2
FUZZ_JOBS ?= 2
FUZZ_SECONDS ?= 30
CHAOS_SEED ?= 1
# The store of the benchmark, the fastest there is without MongoDB; its Rust is newer than ours.
STORE := .stack/secantusd-rs/bin/secantusd-rs
STORE_VERSION := 0.5.3-beta.196
STORE_RUST := 1.98
STORE_CARGO := cargo $(shell printf '%s\n' $(STORE_RUST) $(or $(RUST_FOUND),0) | sort -VC || echo +$(STORE_RUST))

# The tests start hundreds of processes: without its bytecode, each of them compiles the program.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo demo-rebuild stack check test coverage screenshots lint native-test format native fuzz chaos chaos-quick figures bench bench-quick lock browser no-rust no-nightly clean

help:  ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "%-12s %s\n", $$1, $$2}'

demo: $(INSTALLED) $(NATIVE)  ## Run the whole program on a stack of its own, with a shop's history to replay
	$(BIN)/replay-app demo

demo-rebuild: $(INSTALLED) $(NATIVE)  ## Rebuild two corrupted views beside a live stream, and compare them with the truth
	$(BIN)/python examples/rebuild/demo.py

stack: $(INSTALLED)  ## Start a broker and a store, print where they are, run until Ctrl-C
	@$(BIN)/python -m replay_app.demo.stack

check: lint $(NATIVE)  ## Lint, and run the unit and integration tests but the long ones: about three minutes
	$(PYTEST) tests/unit tests/integration -m "not long"

# Two of the preparations side by side: one compiler or linter alone seldom keeps two cores busy.
test:  ## Lint, run every test, and fuzz the native encoder for a minute of processor time
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=line lint browser $(NATIVE) native-test
	$(PYTEST)
	@$(MAKE) --no-print-directory $(FUZZ)

coverage: browser $(NATIVE)  ## Run every test, and show which lines none of them reaches; slower
	$(PYTEST) --cov

screenshots: browser $(NATIVE)  ## Take the pictures of the console in docs/images
	PYTHONPATH=tests $(BIN)/python tests/screenshots.py

lint: $(INSTALLED)  ## Check style, types and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
ifneq ($(RUST_LINTS),)
	cd native && cargo fmt --check && cargo fmt --check --manifest-path fuzz/Cargo.toml
	cd native && cargo clippy --locked --all-targets --features python --quiet -- --deny warnings
else
	@echo "No Rust $(RUST_NEEDED) or later with clippy and rustfmt here: native/ is not linted"
endif

format: $(INSTALLED)  ## Format the code
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

native-test:
ifneq ($(RUST_ANSWERS),)
	cd native && cargo test --locked --quiet
endif

native: $(NATIVE_INSTALLED)  ## Build the native encoder and install it; needs Rust

# Nightly, because only its compiler has the sanitizers.
fuzz: $(INSTALLED)  ## Send hostile pages to the native encoder for half a minute on each of two cores; needs a nightly Rust
	@[ -x $(BIN)/cargo-fuzz ] || \
	  cargo install --quiet --locked --root $(VENV) --version $(CARGO_FUZZ) cargo-fuzz
	$(BIN)/python native/fuzz/seeds.py native/fuzz/corpus/pages
	cd native && PATH="$(CURDIR)/$(BIN):$$PATH" cargo +nightly fuzz run --jobs $(FUZZ_JOBS) pages -- \
	  -max_total_time=$(FUZZ_SECONDS) -max_len=4096 -timeout=10 -ignore_timeouts=0 -ignore_ooms=0

chaos: $(INSTALLED) $(NATIVE)  ## Kill and cut everything, on one broker and on three; the table goes into docs/reliability.md
	PYTHONPATH=tests $(BIN)/python -m chaos.run --seed $(CHAOS_SEED) --write

chaos-quick: $(INSTALLED) $(NATIVE)  ## The same in two or three minutes: kills of each main kind
	PYTHONPATH=tests $(BIN)/python -m chaos.run --seed $(CHAOS_SEED) --quick

figures: $(INSTALLED) $(NATIVE)  ## Measure memory, resuming and rebalances; the tables go into docs/reliability.md
	PYTHONPATH=tests $(BIN)/python -m chaos.figures --write

bench: $(INSTALLED) $(NATIVE) $(if $(REPLAY_STACK_STORE_COMMAND),,$(STORE))  ## Race everything for half an hour; the figures go into bench/RESULTS.md
	PYTHONPATH=tests $(BIN)/python bench/run.py

bench-quick: $(INSTALLED) $(NATIVE)  ## Run every contender once with few events, to see that it works
	PYTHONPATH=tests $(BIN)/python bench/run.py --quick

# No index address may get into a lock: it would name a mirror that others cannot reach.
COMPILE := env -u PIP_FIND_LINKS $(BIN)/pip-compile --quiet --strip-extras --allow-unsafe \
  --generate-hashes --no-header --no-emit-index-url --no-emit-find-links

# The second lock is what the image installs: the first one's versions without its extras. The third
# one has what builds the native encoder.
lock: $(INSTALLED)  ## Resolve the dependencies again
	$(COMPILE) --upgrade --extra bench --extra demo --extra dev --output-file requirements.lock pyproject.toml
	$(COMPILE) --build-deps-for wheel --constraint requirements.lock \
	  --output-file requirements-runtime.lock pyproject.toml
	echo 'maturin>=1.7,<2' | $(COMPILE) --upgrade --output-file requirements-native.lock -

browser:
	@[ -x $(CHROMIUM) ] || ($(SUDO) apt-get update -q && $(SUDO) apt-get install -qy chromium) || \
	  { echo "The browser tests need $(CHROMIUM): apt-get install chromium, as root" >&2; exit 1; }

clean:  ## Remove everything that a target made
	rm -rf $(VENV) .stack .pytest_cache .mypy_cache .ruff_cache .hypothesis build dist *.egg-info
	rm -rf native/target $(addprefix native/fuzz/,target corpus artifacts)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# With --no-deps pip takes the lock as it is. Else pip looks at newer versions of a package that
# another one needs with an extra, and refuses them, because they have no hash in the lock.
$(INSTALLED): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-deps --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	$(BIN)/pip check
	@touch $@

$(NATIVE_INSTALLED): $(NATIVE_FILES) requirements-native.lock $(INSTALLED)
	$(BIN)/pip install --quiet --no-deps --require-hashes -r requirements-native.lock
	rm -rf native/target/wheels
	$(BIN)/maturin build --quiet --release --locked --manifest-path native/Cargo.toml \
	  --interpreter $(BIN)/python --out native/target/wheels
	$(BIN)/pip install --quiet --no-deps --no-index --force-reinstall native/target/wheels/*.whl
	@touch $@

$(STORE):
	@$(STORE_CARGO) --version >/dev/null 2>&1 || \
	  rustup toolchain install --profile minimal $(STORE_RUST) || \
	  { echo "The benchmark's store, secantusd-rs, is built with Rust $(STORE_RUST), CMake and a C" \
	    "compiler: install rustup from https://rustup.rs, or name another store's command in" \
	    "REPLAY_STACK_STORE_COMMAND (\"secantusd-py\" is a slow one)" >&2; exit 1; }
	$(STORE_CARGO) install --quiet --locked --root .stack/secantusd-rs \
	  --version $(STORE_VERSION) secantus-mdb

no-rust:
	@echo "No Rust $(RUST_NEEDED) or later here: pages are encoded in Python, at a fraction of the speed"

no-nightly:
	@echo "No nightly Rust here: the native encoder is not fuzzed"
