# Everything runs in .venv, which the first command makes. Needs only Python 3.11+, make and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
NETWORK_STAMP := $(VENV)/.installed-network
LANG_SHOWN ?= en

.PHONY: demo demo-network test test-slow check figures format clean

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "medfed needs Python 3.11 or newer; call make with PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)

$(STAMP): pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo]'
	@touch $@

$(DEV_STAMP): $(STAMP) requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e tests/plugin
	@touch $@

$(NETWORK_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,network]'
	@touch $@

demo: $(STAMP)            ## four hospitals' raw files -> a federated answer and a model back at a hospital
	$(BIN)/medfed demo --folder demo-output --lang $(LANG_SHOWN)

demo-network: $(NETWORK_STAMP) ## a coordinator and four sites as processes, killed in the middle, the same bits
	$(BIN)/medfed demo-network --folder demo-network-output --lang $(LANG_SHOWN)

test: $(DEV_STAMP)        ## the default tests
	$(BIN)/python -m pytest -n 2 --dist loadgroup

test-slow: $(DEV_STAMP)   ## kill tests and other slow ones
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m slow

check: $(DEV_STAMP)       ## format, lint, types, layers, links in docs
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tests/docs_links.py

format: $(DEV_STAMP)
	$(BIN)/ruff format src tests benchmarks
	$(BIN)/ruff check --fix src tests benchmarks

figures: $(DEV_STAMP)     ## every figure that README, docs or tests claim; ONLY=heart for some of them
	$(BIN)/python benchmarks/figures.py $(if $(ONLY),--only $(ONLY))

clean:
	rm -rf $(VENV) demo-output demo-network-output
