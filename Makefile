# Every target does its own set-up in .venv and is incremental. `make help` lists them.
# A fresh machine needs python3 (with venv), g++ and make; cmake, ninja, pybind11 and GoogleTest
# come from Python packages.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
PY := $(BIN)/python
BUILD := build/cmake
JOBS ?= 2
# Several builds at once in one checkout wait for each other (flock is part of util-linux).
LOCK = mkdir -p build && $(if $(shell command -v flock),flock build/.lock,)
CXX_FILES = $(shell find csrc cpp_tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help
help: ## Show this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20

# --- Environment and build ------------------------------------------------------------------

$(VENV)/.stamp: pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (first time: a few minutes)"
	@$(LOCK) $(SHELL) -euc '\
	  [ -x $(PY) ] || $(PYTHON) -m venv $(VENV); \
	  $(PY) -m pip install --quiet --upgrade "pip>=25.1"; \
	  $(PY) -m pip install --quiet -c constraints.txt --group dev; \
	  MEGACORE_SKIP_BUILD=1 $(PY) -m pip install --quiet -c constraints.txt --no-build-isolation -e ".[writers]"; \
	  $(PY) -m pip install --quiet --group cpp-tests \
	    || echo "note: no GoogleTest package for this Python; a system GoogleTest is used if any"'
	@touch $@

.PHONY: build
build: $(VENV)/.stamp ## Build megacore._C, megacore._ops and the C++ tests in place
	@$(LOCK) $(SHELL) -euc '\
	  [ -f $(BUILD)/.tests-on ] || { \
	    $(BIN)/cmake -S . -B $(BUILD) -G Ninja -DCMAKE_MAKE_PROGRAM=$(BIN)/ninja \
	      -DPython_EXECUTABLE=$(PY) -DMEGACORE_TESTS=ON > build/configure.log 2>&1 \
	      || { cat build/configure.log; exit 1; }; touch $(BUILD)/.tests-on; }; \
	  $(BIN)/ninja -C $(BUILD) -k 0 --quiet'

# --- Tests ----------------------------------------------------------------------------------

.PHONY: cpp-test
cpp-test: build
	@if [ -x $(BUILD)/cpp_tests/megacore_tests ]; then \
	  $(BUILD)/cpp_tests/megacore_tests --gtest_brief=1; \
	  $(BUILD)/cpp_tests/megacore_cuda_tests --gtest_brief=1; \
	else \
	  echo "**********************************************************************"; \
	  echo "* C++ TESTS WERE NOT RUN: GoogleTest was not found.                   *"; \
	  echo "* Install it (Debian: apt-get install libgtest-dev) and run again.    *"; \
	  echo "**********************************************************************"; \
	  [ "$${CI:-}" != true ]; \
	fi

.PHONY: test
test: cpp-test ## Build and run the C++ and the Python tests
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) -m "not gpu and not slow and not all_layouts"

# Own build folders: sanitizers change every object. The thread sanitizer runs what has threads; the
# emulation of CUDA has checks of its own.
SANITIZED = address,undefined thread

.PHONY: sanitize
sanitize: $(VENV)/.stamp ## C++ tests under the address, undefined-behaviour and thread sanitizers
	@for kind in $(SANITIZED); do \
	  folder=build/sanitize-$${kind%%,*}; \
	  $(BIN)/cmake -S . -B $$folder -G Ninja -DCMAKE_MAKE_PROGRAM=$(BIN)/ninja \
	    -DPython_EXECUTABLE=$(PY) -DMEGACORE_TESTS=ON -DMEGACORE_CUDA=OFF \
	    -DMEGACORE_OUTPUT_DIR=$(CURDIR)/$$folder -DCMAKE_BUILD_TYPE=None \
	    -DCMAKE_CXX_FLAGS="-O1 -g1 -fsanitize=$$kind -fno-sanitize-recover=all" > /dev/null; \
	  $(BIN)/ninja -C $$folder --quiet megacore_tests; \
	  filter='*'; [ $$kind = thread ] && filter='*Executor*:*ThreadWorld*:*Schedule*:*Pipeline*:*Bucket*'; \
	  echo "== $$kind"; $$folder/cpp_tests/megacore_tests --gtest_brief=1 --gtest_filter="$$filter"; \
	done

.PHONY: soak
soak: build ## A million random pipeline schedules: valid, in order, free of deadlock
	@$(BUILD)/cpp_tests/megacore_schedule_soak --plans 1000000

.PHONY: test-slow
test-slow: build ## The tests that take minutes (packaging in clean environments)
	@OMP_NUM_THREADS=1 $(PY) -m pytest -m "slow and not gpu"

.PHONY: test-all
test-all: build ## The tests of every layout of processes too (an hour on two cores)
	@OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) -m "not gpu and not slow"

.PHONY: gpu-test
gpu-test: build ## GPU tests and GPU benchmarks; says so and stops where there is no GPU
	@if $(PY) -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then \
	  $(PY) -m pytest -m gpu && for f in benchmarks/bench_*.py; do \
	    if grep -q -- --device $$f; then $(PY) $$f --device cuda; fi; done; \
	else echo "gpu-test skipped: torch sees no CUDA device"; fi

.PHONY: bench
bench: build ## Run every benchmark; figures belong into benchmarks/results/
	@for f in benchmarks/bench_*.py; do echo "== $$f"; $(PY) $$f; done

.PHONY: cuda-check
cuda-check: $(VENV)/.stamp ## Compile and link all CUDA sources; registers, spills, shared memory
	@$(PY) tools/cuda_check.py

.PHONY: demo
demo: build ## Prepare text, train, resume, plot and generate
	@$(PY) -m megacore.demo

# --- Style ----------------------------------------------------------------------------------

.PHONY: lint
lint: $(VENV)/.stamp ## clang-format, ruff, mypy and the structure test
	@$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/mypy --no-error-summary
	@$(PY) -m pytest -p no:cacheprovider tests/test_structure.py

.PHONY: format
format: $(VENV)/.stamp ## Rewrite the sources in the project's format
	@$(BIN)/clang-format -i $(CXX_FILES)
	@$(BIN)/ruff check --quiet --fix . || true
	@$(BIN)/ruff format .

.PHONY: clean
clean: ## Remove everything built (the environment stays)
	@rm -rf build dist python/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find python -name '*.so' -delete
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
