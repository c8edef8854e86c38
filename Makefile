# The commands that people, .ci/run and the GitHub workflow share. Each sets up .venv by itself when it has to.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test test-all test-gpu docs style quality mlint dist check-dist train-emoji clean

# A python3.11 that is on the path but does not run (a version manager's shim) does not count.
PYTHON ?= $(shell python3.11 -c pass 2>/dev/null && echo python3.11 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Always with the constraints: they choose the PyTorch build that the tests were run on.
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check -c $(CURDIR)/constraints.txt
PYTEST_ARGS ?=
# Of `make test` and `make test-all`. Workers of one thread each: on two cores they take 0.6 of the time of one process with two threads.
WORKERS ?= $(shell cores=$$(getconf _NPROCESSORS_ONLN); echo $$((cores > 4 ? 4 : cores)))

# Rules of mlinter that assume the transformers tree: 028 wants the full licence text on top of every file,
# 041 a note on which published checkpoint takes each branch on a config field, 057 generated docstrings (ours are
# written by hand, with shapes and errors).
MLINTER_IGNORED := TRF028|TRF041|TRF057

START := $(shell date +%s)
elapsed = $$(( ($$(date +%s) - $(START)) / 60 )) min $$(( ($$(date +%s) - $(START)) % 60 )) s

help:  ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

$(INSTALLED): setup.py constraints.txt src/uniwetok_hf/version.py
	@$(PYTHON) -c 'import sys; sys.exit(f"Python 3.11 or newer is needed; $(PYTHON) is {sys.version.split()[0]}" if sys.version_info < (3, 11) else 0)'
	@echo "Setting up $(VENV) (a few minutes the first time: PyTorch is large)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python $(PIP_INSTALL) --editable ".[dev]"
	@touch $@

demo: $(INSTALLED)  ## reconstruct, generate, edit and describe pictures into demo_output/
	@$(BIN)/uniwetok demo --output demo_output
	@echo "make demo took $(elapsed), set-up included."

# In CI pytest's own closing line, which has the time too, must be the last one printed.
define run_pytest
	@echo "Set-up took $(elapsed)."
	@status=0; HF_HUB_OFFLINE=1 $(2) $(BIN)/pytest $(1) $(PYTEST_ARGS) || status=$$?; \
	$(if $(CI),,echo "make $@ took $(elapsed), set-up included.";) exit $$status
endef

IN_WORKERS := -n $(WORKERS) --dist loadfile
test: $(INSTALLED)  ## run the tests, but for the slow ones
	$(call run_pytest,-m "not slow" $(IN_WORKERS),OMP_NUM_THREADS=1)

# Without these (no network?) all other tests run, and those that need them say why they are skipped.
test-all: $(INSTALLED)  ## run all tests; those of the web page need a chromium on the path
	@$(BIN)/python $(PIP_INSTALL) --editable ".[dev,app,browser,ocr,onnx,quantize,ray,deepspeed]" "transformers[serving]" || echo "Not all extras could be installed."
	@$(BIN)/python tests/contract/library_tests.py || echo "transformers' own tests could not be fetched."
	$(call run_pytest,$(IN_WORKERS),OMP_NUM_THREADS=1)

# By .venv where its PyTorch sees a GPU (the pinned build of CI may be one for CPUs), else by the machine's own python3,
# into which nothing is installed: what it lacks is named.
GPU_PYTHON ?= $(shell $(BIN)/python -c 'import torch; torch.cuda.init()' 2>/dev/null && echo $(BIN)/python || echo python3)
GPU_ARGS ?= --output gpu_results
GPU_TESTS := tests/parity tests/modeling tests/losses tests/schedulers tests/contract tests/pipelines
test-gpu:  ## on a machine with CUDA: benchmarks/gpu.py (eight minutes), then the tests that run on the GPU
	@status=0; $(GPU_PYTHON) benchmarks/gpu.py $(GPU_ARGS) || status=$$?; test $$status -lt 2 || exit $$status; \
	PYTHONPATH=src:$${PYTHONPATH:-} UNIWETOK_TEST_DEVICE=cuda HF_HUB_OFFLINE=1 \
		$(GPU_PYTHON) -m pytest -q -m "not slow" $(GPU_TESTS) $(PYTEST_ARGS) || status=$$?; exit $$status

docs: $(INSTALLED)  ## build the documentation into site/, with its links checked
	@$(BIN)/python $(PIP_INSTALL) --editable ".[docs]"
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --site-dir site

style: $(INSTALLED)  ## format the code and mend what ruff can mend
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

quality: $(INSTALLED) mlint  ## check style, transformers' model rules, layers of imports and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo --no-cache
	@$(BIN)/ty check

# What mlinter prints, but for the rules ignored and its closing count, is a finding; it fails the target.
mlint: $(INSTALLED)
	@$(BIN)/mlinter --version
	@findings=$$(COLUMNS=1000 $(BIN)/mlinter --no-progress --no-cache src/uniwetok_hf 2>&1 \
		| grep -vE '$(MLINTER_IGNORED)|violation\(s\)' || true); \
	if [ -n "$$findings" ]; then echo "$$findings"; exit 1; fi

dist: $(INSTALLED)  ## build the source distribution, and the wheel from it, into dist/
	@rm -rf dist
	@$(BIN)/python -m build --quiet --dependency-constraints-txt constraints.txt --outdir dist .
	@ls -l dist

# First bare, which shows that no extra is needed to import the package and to start its command; then with the demo.
check-dist: dist  ## install the wheel in a clean environment and run the demo from it
	@folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; wheel=$$(echo $(CURDIR)/dist/*.whl); \
	$(BIN)/python -m venv "$$folder/venv"; cd "$$folder"; unset PYTHONPATH; export HF_HUB_OFFLINE=1; \
	venv/bin/python $(PIP_INSTALL) "$$wheel"; \
	venv/bin/python -c 'import uniwetok_hf as u; from pathlib import Path; root = Path(u.__file__).parent; \
	needed = [root / "py.typed", root / "model_card.md", u.embedded_path("uniwetok-emoji") / "model_index.json"]; \
	missing = [str(path) for path in needed if not path.is_file()]; \
	assert "site-packages" in root.parts and not missing, (root, missing)'; \
	venv/bin/uniwetok --help > /dev/null; \
	venv/bin/python $(PIP_INSTALL) "$$wheel[demo]"; \
	venv/bin/uniwetok demo --output demo_output; \
	test -n "$$(ls demo_output)"
	@echo "make check-dist took $(elapsed): the demo runs from the installed wheel."

train-emoji:
	$(error The recipe of the embedded model is a script now: bash examples/emoji/run.sh)

clean:  ## remove what the commands wrote, and .venv
	rm -rf $(VENV) .cache build dist site demo_output gpu_results src/*.egg-info .pytest_cache .ruff_cache
