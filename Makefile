# make poc    install what is missing and run the default PoC to a finished report
# make test   the tests that a change must pass; make test-slow the long ones
# make ui     MLflow's pages for the runs made here
# make bench-features   a benchmark; QUICK=1 tries it in a minute. bench-arms: many students on one teacher pass.
#                       bench-scale: how cost grows, and whether it was estimated. bench-head and bench-engine have
#                       rivals, in a .venv-bench of their own
# make bench-quality   what distillation and feature alignment are worth: a search and its confirmation, some hours
#                      ONLY=random_init, copied_init or little_data: that setting alone
# make bench-deploy   decoding, lm-eval and the latency tool beside their rivals; onnxruntime-genai in a .venv-genai
# make bench-verdict   thousands of synthetic PoCs with a planted truth: is the verdict right? 20 minutes
# make bench-audit   a year of weekly audits, again and again: false alarms, and how soon a bad student is found
# make bench-norms   the form of the norm term: a search of about half an hour
SHELL := /bin/bash
BIN := .venv/bin
SPEC ?= flows/specs/default.yaml
PIP_OPTIONS ?=
UV := uv==0.13.9
LOCK := --universal --no-header --no-annotate pyproject.toml

.PHONY: poc test test-slow ui bench-arms bench-audit bench-deploy bench-engine bench-features bench-head bench-norms bench-quality bench-scale bench-verdict lint lock clean
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

bench-norms: .venv/.installed
	@$(BIN)/python tests/benchmarks/norms.py

bench-quality: .venv/.installed
	@$(BIN)/python tests/benchmarks/quality.py

bench-verdict: .venv/.installed
	@OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/verdict.py

bench-audit: .venv/.installed
	@OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/audit.py

bench-scale: .venv/.installed
	@$(BIN)/python tests/benchmarks/scale.py

bench-arms: .venv/.installed
	@$(BIN)/python tests/benchmarks/arms.py

bench-deploy: .venv/.installed .venv-genai/.installed
	@$(BIN)/python tests/benchmarks/deploy.py

bench-head: .venv-bench/.installed
	@.venv-bench/bin/python tests/benchmarks/head.py

bench-engine: .venv-bench/.installed
	@.venv-bench/bin/python tests/benchmarks/engine.py

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/lint-imports

lock: .venv/.installed
	$(BIN)/python -m pip install -q '$(UV)'
	$(BIN)/uv pip compile $(LOCK) --extra dev -o constraints.txt
	$(BIN)/uv pip compile $(LOCK) --extra bench -c constraints.txt -o tests/benchmarks/constraints.txt

clean:
	rm -rf .venv .venv-bench .venv-genai *.egg-info .pytest_cache .ruff_cache .import_linter_cache

# Rivals are pinned to what fits the product's pins (make lock): they never decide them.
.venv/.installed: INSTALL = -c constraints.txt -e '.[dev]'
.venv-bench/.installed: INSTALL = -c tests/benchmarks/constraints.txt -e '.[bench]'
.venv-bench/.installed: tests/benchmarks/constraints.txt
# onnxruntime-genai brings the CPU's onnxruntime, which keeps no house with onnxruntime-gpu; its builder wants the rest.
.venv-genai/.installed: INSTALL = -c constraints.txt onnxruntime-genai==0.18.0 onnxruntime==1.31.1 torch transformers onnx onnx-ir

# Everything goes to stderr: the last line on stdout is the JSON document of the command that wanted the folder.
.venv/.installed .venv-bench/.installed .venv-genai/.installed: pyproject.toml constraints.txt
	@exec 1>&2; \
	for python in python3.13 python3.12 python3.11 python3.14 python3; do \
	    if $$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; then \
	        found=$$python; break; \
	    fi; \
	done; \
	if [ -z "$$found" ]; then echo 'featkd needs Python 3.11 to 3.14 on the PATH'; exit 1; fi; \
	[ -x $(@D)/bin/python ] || $$found -m venv $(@D) || { rm -rf $(@D); exit 1; }; \
	echo 'installing the pinned dependencies into $(@D) (one to several minutes)'; \
	$(@D)/bin/python -m pip install -q --disable-pip-version-check $(PIP_OPTIONS) $(INSTALL) && touch $@
