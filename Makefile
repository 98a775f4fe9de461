# Needs Python 3.11 or later and nothing else: .venv is made here, from the pins in constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench
# Options of `make bench` and `make performance`: see benchmarks/README.md.
BENCH ?=

.PHONY: demo test lint types docs bench performance clean

demo: $(STAMP)
	$(BIN)/clipseq demo

test: $(STAMP)
	$(BIN)/python -m pytest --numprocesses auto

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

docs: $(STAMP)
	$(BIN)/python -m sphinx --builder html --fail-on-warning --keep-going --nitpicky docs docs/_build/html

bench: $(BENCH_STAMP)
	$(BIN)/python -m pytest benchmarks --benchmark-columns median,rounds $(BENCH)

# What was measured is reported even where a bound was not kept.
performance: $(BENCH_STAMP)
	$(BIN)/python -m pytest benchmarks --benchmark-columns median,rounds $(BENCH); status=$$?; \
		$(BIN)/python benchmarks/report.py && exit $$status

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"clipseq needs Python 3.11 or later, this is {sys.version}: try make PYTHON=python3.12"'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

$(BENCH_STAMP): $(STAMP) benchmarks/peers.txt
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,bench]'
	$(BIN)/python -m pip install --quiet --no-deps --requirement benchmarks/peers.txt
	touch $@

clean:
	rm -rf $(VENV) build dist docs/_build
