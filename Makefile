# make reproduce | make test | make check — everything is set up in .venv first.
PYTHON ?= python3
VENV   ?= .venv
# Another package index for torch only, such as the one of CPU wheels named on PyTorch's installation page (README: sizes).
TORCH_INDEX ?=
BIN := $(VENV)/bin

.PHONY: setup reproduce test long check clean
.DEFAULT_GOAL := reproduce

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Headwork needs Python 3.11 or newer; this is %s. Try: make PYTHON=python3.12" % sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

reproduce: setup
	$(BIN)/headwork reproduce induction-heads

test: setup
	$(BIN)/python -m pytest -m 'not long'

long: setup
	$(BIN)/python -m pytest -m long

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist
