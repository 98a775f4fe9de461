# Needs only Python 3.11 or later: .venv is created here, from the pins in constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CREATED := $(VENV)/.created
DEMO_STAMP := $(VENV)/.installed-demo
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Options of `clipseq demo`, as in make demo DEMO="--small --out runs/small".
DEMO ?=
# Options of `make bench` and `make performance`: see benchmarks/README.md.
BENCH ?=
# Options of `make learning`: see benchmarks/learning/README.md.
LEARNING ?= --docs docs

.PHONY: demo test check fast lint types docs bench performance learning clean

demo: $(DEMO_STAMP)
	$(BIN)/clipseq demo $(DEMO)

test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses auto --dist loadscope

# For every commit: under 90 seconds on two cores. `make test` is for every push.
# Types keep one core busy for longest from a cold cache, so the three run side by side.
check: $(STAMP)
	$(MAKE) --jobs 3 lint types fast

fast: $(STAMP)
	$(BIN)/python -m pytest --numprocesses auto --dist loadscope --quiet -m "not slow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python .ci/english.py
	$(BIN)/towncrier build --draft --version next > $(VENV)/changes.md

types: $(STAMP)
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --nitpicky docs docs/_build/html

bench: $(BENCH_STAMP)
	$(BIN)/python -m pytest benchmarks --benchmark-columns median,rounds $(BENCH)

# The report is written even if a bound is broken.
performance: $(BENCH_STAMP)
	$(BIN)/python -m pytest benchmarks --benchmark-columns median,rounds $(BENCH); status=$$?; \
		$(BIN)/python benchmarks/report.py && exit $$status

# A whole run takes a night on two cores; an interrupted one continues where it stopped.
learning: $(DEMO_STAMP)
	$(BIN)/python -m benchmarks.learning $(LEARNING)

$(CREATED):
	@$(PYTHON) -c 'import sys; sys.exit(f"clipseq needs Python 3.11 or later, this is {sys.version}: try make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(DEMO_STAMP): $(CREATED) pyproject.toml constraints.txt
	@echo "Installing clipseq with PyTorch, lightning and matplotlib into $(VENV): 1.3 GB, or more with"
	@echo "the CUDA build of PyTorch. This happens once and takes 2 to 10 minutes, most of it download."
	@echo "The demo itself then takes about 5 minutes on two cores."
	$(INSTALL) --editable '.[train,plot]'
	@touch $@

$(STAMP): $(CREATED) pyproject.toml constraints.txt
	@echo "Installing clipseq and all tools of its development into $(VENV): 2 GB, or more with the CUDA"
	@echo "build of PyTorch. This happens once and takes 2 to 10 minutes, most of it download."
	$(INSTALL) --editable '.[dev]'
	@touch $@ $(DEMO_STAMP)

$(BENCH_STAMP): $(STAMP) benchmarks/peers.txt
	@echo "Installing the libraries that clipseq is measured against into $(VENV)."
	$(INSTALL) --editable '.[dev,bench]'
	$(INSTALL) --no-deps --requirement benchmarks/peers.txt
	@touch $@

clean:
	rm -rf $(VENV) build dist docs/_build
