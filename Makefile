# Two commands do everything: `make quickstart` and `make test`.  Only Python ≥ 3.11 and make are needed.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The CPU build of torch unless there is a CUDA driver; TORCH overrides, e.g. make TORCH='torch==2.13.0+cu130'.
TORCH ?= $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi >/dev/null 2>&1 && echo 'torch==2.13.*' || echo 'torch==2.13.0+cpu')

.DEFAULT_GOAL := help
.PHONY: help install quickstart test browser slow torture lint bench docs clean

help:
	@echo "make quickstart   install, then teach a tiny model to add (five minutes on two cores)"
	@echo "make test         install, then run the tests, the linter and the type checker"
	@echo "make browser      a browser for those tests, if there is none yet (part of make test)"
	@echo "make slow         the tests that take longer"
	@echo "make torture      kill jobs at every place there is, and compare them to the bit (hours)"
	@echo "make bench        time the same work here and in TRL, interleaved"
	@echo "make docs         write the generated pages of docs/ again"

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "gro needs Python 3.11 or newer; make PYTHON=/path/to/python3"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)" -c constraints.txt || { \
	  echo "no build $(TORCH) is offered to this pip; installing the default one (on Linux it brings CUDA, several GB)."; \
	  echo "For the small CPU build point pip at PyTorch's CPU index, see https://pytorch.org/get-started/locally"; \
	  $(BIN)/python -m pip install "torch==2.13.*" -c constraints.txt; }
	$(BIN)/python -m pip install --quiet -e '.[dev]' -c constraints.txt
	@touch $@

quickstart: install
	rm -rf runs/quickstart
	$(BIN)/gro quickstart

test: install browser
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -n 2

# Looks for the browser in which the windows are tested; where there is none it tries playwright's and then, as root,
# the system's package.  Without one those tests are skipped.
browser: install
	-@$(BIN)/python tests/web/get_browser.py

slow: install browser
	$(BIN)/python -m pytest -m slow --hypothesis-profile=default

# What it found is in docs/reliability.md; `cd tests && python -m torture --help` says how to ask for less.
torture: install
	cd tests && ../$(BIN)/python -m torture

lint: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/pyright

bench: install .venv-trl/installed
	$(BIN)/python bench/run.py

# The peer, in an environment of its own: its pins need not agree with ours.
.venv-trl/installed: bench/peer-requirements.txt
	test -x .venv-trl/bin/python || $(PYTHON) -m venv .venv-trl
	.venv-trl/bin/python -m pip install --quiet "$(TORCH)" || .venv-trl/bin/python -m pip install --quiet "torch==2.13.*"
	.venv-trl/bin/python -m pip install --quiet -r bench/peer-requirements.txt
	@touch $@

docs: install
	$(BIN)/python docs/generate.py

clean:
	rm -rf $(VENV) .venv-* runs
