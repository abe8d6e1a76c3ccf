# make poc    install what is missing and run the default PoC to a finished report
# make test   the tests that a change must pass; make test-slow the long ones
# make ui     MLflow's pages for the runs made here
# make bench-features   a benchmark; QUICK=1 tries it in a minute
SHELL := /bin/bash
BIN := .venv/bin
SPEC ?= flows/specs/default.yaml
PIP_OPTIONS ?=
UV := uv==0.13.9

.PHONY: poc test test-slow ui bench-features lint lock clean
.DEFAULT_GOAL := poc

poc: .venv/.installed
	@$(BIN)/featkd run $(SPEC)

test: .venv/.installed
	$(BIN)/python -m pytest

test-slow: .venv/.installed
	$(BIN)/python -m pytest -m slow

ui: .venv/.installed
	@$(BIN)/featkd ui

bench-features: .venv/.installed
	@$(BIN)/python tests/benchmarks/features.py

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/lint-imports

lock: .venv/.installed
	$(BIN)/python -m pip install -q '$(UV)'
	$(BIN)/uv pip compile --universal --all-extras --no-header --no-annotate pyproject.toml -o constraints.txt

clean:
	rm -rf .venv *.egg-info .pytest_cache .ruff_cache .import_linter_cache

# Everything goes to stderr: the last line on stdout is the JSON document of the command that wanted the folder.
.venv/.installed: pyproject.toml constraints.txt
	@exec 1>&2; \
	for python in python3.13 python3.12 python3.11 python3.14 python3; do \
	    if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; then \
	        found=$$python; break; \
	    fi; \
	done; \
	if [ -z "$$found" ]; then echo 'featkd needs Python 3.11 to 3.14 on the PATH'; exit 1; fi; \
	[ -x $(BIN)/python ] || $$found -m venv .venv || { rm -rf .venv; exit 1; }; \
	echo 'installing the pinned dependencies into .venv (one to several minutes)'; \
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_OPTIONS) -c constraints.txt -e '.[dev]' && touch $@
