# make reproduce | make test | make check | make bench – everything is set up in .venv first.
PYTHON ?= python3
VENV   ?= .venv
# Another package index for torch alone, such as the CPU wheel index named on PyTorch's installation page:
#   make reproduce TORCH_INDEX=URL
# On Linux that is 0.2 GB to download instead of 2.7 GB (README, "Downloads").
TORCH_INDEX ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

OLD_PYTHON := "Headwork needs Python 3.11 or newer, and $(PYTHON) is %s. Try: make PYTHON=python3.12"
NO_VENV := "$(PYTHON) has no venv module. On Debian and Ubuntu: apt install python3-venv"

.PHONY: setup reproduce test long check bench clean
.DEFAULT_GOAL := reproduce

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and $(OLD_PYTHON) % sys.version.split()[0])'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo $(NO_VENV) >&2; exit 1; }
	@echo "Setting up $(VENV): this downloads PyTorch and takes a few minutes."
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@$(PIP) -e '.[dev]'
	@touch $@

reproduce: setup
	@$(BIN)/headwork reproduce induction-heads

test: setup
	@$(BIN)/python -m pytest -n auto --dist worksteal -m 'not long'

long: setup
	@$(BIN)/python -m pytest -m long

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# Speed and memory beside the peers, each in an environment of its own (1.6 GB each); wants two idle cores for about
# 25 minutes, and goes on where it was interrupted. ARGS='--help' says what else it takes.
PEERS := .venv-peers
PEER_PIP := bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PEER_tl4 := transformer-lens==4.3.0
PEER_tl3 := transformer-lens==3.9.0

bench: setup $(PEERS)/tl4/.ready $(PEERS)/tl3/.ready
	@$(BIN)/python -m benchmarks $(ARGS)

$(PEERS)/%/.ready: constraints.txt
	@echo "Setting up $(PEERS)/$*: $(PEER_$*)."
	@test -x $(@D)/bin/pip || $(PYTHON) -m venv $(@D)
	@$(@D)/$(PEER_PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	@$(@D)/$(PEER_PIP) $(PEER_$*)
	@touch $@

clean:
	rm -rf $(VENV) $(PEERS) .bench build dist
