# Needs Python >= 3.11 (with venv) and make; everything else goes into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Holds the requirements that are installed, so that nothing is installed twice.
STAMP := $(VENV)/requirements.installed
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
# Two processes: the suite is made for two cores, and each takes one thread.
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal
BENCHMARK = $(BIN)/python benchmarks/$(1).py --json outputs/gpu/$(2).json

.PHONY: help install demo leaderboard test test-all gpu lint format lock audit clean

help: ## list these targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

install: $(STAMP) ## create .venv and install the pinned requirements

demo: $(STAMP) ## train ParScale models with P = 1, 2, 4 and compare them (9 minutes on 2 cores)
	$(BIN)/parcontrol demo

leaderboard: $(STAMP) ## evaluate the demo's models on the sample tasks and serve the leaderboard's page
	$(BIN)/parcontrol leaderboard demo

test: $(STAMP) ## the tests, without the full counts of slow suites
	$(PYTEST) -m "not full"

test-all: $(STAMP) ## all tests
	$(PYTEST)

# Nothing that is skipped here counts as passed. PEAK_TFLOPS=989: the data sheet's, for the share of it that steps reach.
gpu: $(STAMP) ## what only a CUDA device can answer: its tests, then its benchmarks (figures in outputs/gpu)
	@$(BIN)/python -c 'import sys, torch; torch.cuda.is_available() or sys.exit("error: torch sees no CUDA device here")'
	mkdir -p outputs/gpu
	$(PYTEST) -m cuda
	$(call BENCHMARK,decoding,decoding_smollm2) --shape SmolLM2-135M --P 1 8
	$(call BENCHMARK,decoding,decoding_qwen2) --shape Qwen2.5-0.5B --P 1 8
	$(call BENCHMARK,step_products,step_smollm2) $(STEP) --shape SmolLM2-135M --P 1 4
	$(call BENCHMARK,step_products,step_qwen2) $(STEP) --shape Qwen2.5-0.5B --P 1 4
	$(call BENCHMARK,training_memory,training_memory) --B 8 --T 1024 --time-P 8
gpu: STEP = --T 1024 --tokens 16384 $(if $(PEAK_TFLOPS),--peak-tflops $(PEAK_TFLOPS))

lint: $(STAMP) ## style, types and import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## put the code into the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(STAMP) ## write requirements.lock anew: the versions of requirements.txt with the hashes of all their files
	grep -v -e '^torch==' -e '^-e ' requirements.txt | $(BIN)/uv pip compile --quiet --no-config --universal \
	  --python-version 3.11 --no-deps --no-annotate --generate-hashes --custom-compile-command "make lock" \
	  - --output-file requirements.lock

audit: $(STAMP) ## look all pinned packages up in PyPI's database of vulnerabilities
	$(BIN)/python supply/audit.py requirements.lock requirements.txt

clean: ## remove .venv and all caches; outputs stay
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache src/*.egg-info
	find . -name __pycache__ -type d -not -path './outputs/*' -prune -exec rm -rf {} +

# First what has hashes, which pip checks; then the second finds only torch and the project itself missing.
$(STAMP): requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) -V 2>&1)." \
	    "Name another one with 'make PYTHON=python3.12 ...'." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "error: $(PYTHON) cannot create virtual environments." \
	    "On Debian: apt-get install python3-venv" >&2; exit 1; }
	@if cmp -s $< $@; then echo "$(VENV) is up to date"; else \
	  echo "Installing the pinned requirements into $(VENV) (once; this takes minutes)" && \
	  { test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); } && \
	  $(PIP_INSTALL) --require-hashes --no-deps -r requirements.lock && \
	  $(PIP_INSTALL) -r $<; fi
	@cp $< $@
