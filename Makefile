# `make train` and `make test` do all of their set-up. On Linux without an NVIDIA GPU, the CPU build of PyTorch saves
# gigabytes: make train TORCH_INDEX=https://download.pytorch.org/whl/cpu

PYTHON ?= $(shell for v in python3.13 python3.12 python3.11 python3 python; do \
	$$v -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$v; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
TORCH_INDEX ?=
# The versions to install: those that were tested, constraints-oldest.txt for the oldest, or nothing for the newest.
CONSTRAINTS ?= constraints.txt
RECIPE ?=
ARGS ?=

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS:%=--constraint %)
# torch is installed first and alone, so that no other package's requirement chooses its build.
TORCH := $(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(or $(if $(CONSTRAINTS),$(shell sed -n '/^torch==/p' $(CONSTRAINTS))),torch)

.PHONY: train test test-sandbox test-other-cpu test-comparison test-verl lint types docs dist try-dist clean help

help:
	@echo "make train   set up, then train the embedded model with CTPO (ARGS='seed=1 objective=grpo' to change it)"
	@echo "make test    set up, then lint, check types and run the tests (ARGS='tests/objectives -k golden' for some)"
	@echo "make test-verl   test with the real verl and Ray, on the CPU, in an environment of its own"
	@echo "make docs    build the documentation into site/, which opens from disk; broken links and missing pages fail it"
	@echo "make dist    build the source archive and the wheels into dist/, with the C pass for two processors, and check them"
	@echo "make try-dist  install what make dist built, with each extra, into fresh environments, try it and print the sizes"
	@echo "make clean   remove the virtual environments and caches"

train: $(VENV)/.installed
	@$(BIN)/ctpo train $(RECIPE) $(ARGS)

# All tests run in two processes, but the sandbox's run alone, because programs have time limits there. They leave one core free, on
# which meanwhile the types are checked, comparisons are tested, and the objectives run once more as on another CPU: torch adds in another order with
# AVX-512, with AVX2 and without either. What compiles or starts processes is left out there, because that takes most of the time and
# no other arithmetic. With ARGS, pytest runs once and gets them.
PYTEST := $(BIN)/python -m pytest
OTHER_CPU := $(shell grep -qw avx512f /proc/cpuinfo 2>/dev/null && echo avx2 || echo default)
test: $(VENV)/.installed-dev lint
ifeq ($(strip $(ARGS)),)
	@OMP_NUM_THREADS=1 $(PYTEST) --numprocesses 2 --dist loadfile --ignore tests/sandbox --ignore tests/lab/comparison
	@$(MAKE) --no-print-directory --jobs 2 --output-sync=target test-sandbox test-other-cpu test-comparison
else
	@$(MAKE) --no-print-directory types
	@$(PYTEST) $(ARGS)
endif

test-other-cpu: types
	@OMP_NUM_THREADS=1 ATEN_CPU_CAPABILITY=$(OTHER_CPU) $(PYTEST) tests/objectives \
		--ignore tests/objectives/test_sharding.py --ignore tests/objectives/test_transforms.py

test-sandbox: $(VENV)/.installed-dev
	@$(PYTEST) tests/sandbox

# Its tests start whole runs, which wait for processes; they fit beside those of the sandbox.
test-comparison: $(VENV)/.installed-dev
	@OMP_NUM_THREADS=1 $(PYTEST) tests/lab/comparison

# verl needs other versions than the package, so its tests have an environment of their own on top of this one.
test-verl: .venv-verl/.installed
	@.venv-verl/bin/python -m pytest tests/adapters tests/engines tests/training/test_ray_train.py $(ARGS)

.venv-verl/.installed: tests/adapters/requirements-verl.txt | $(VENV)/.installed-dev
	@$(BIN)/python -m venv .venv-verl
	@$(BIN)/python -c 'import site; print("import site; site.addsitedir(%r)" % site.getsitepackages()[0])' \
		> $$(.venv-verl/bin/python -c 'import site; print(site.getsitepackages()[0])')/base.pth
	@.venv-verl/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r $<
	@touch $@

# The site shows what the code says, so its environment sees the packages of this one.
docs: .venv-docs/.installed
	@NO_MKDOCS_2_WARNING=1 PYTHONPATH=src .venv-docs/bin/python -m mkdocs build --strict --quiet
	@echo "the documentation: site/index.html"

.venv-docs/.installed: scripts/handbook/requirements.txt | $(VENV)/.installed-dev
	@$(BIN)/python -m venv .venv-docs
	@$(BIN)/python -c 'import site; print("import site; site.addsitedir(%r)" % site.getsitepackages()[0])' \
		> $$(.venv-docs/bin/python -c 'import site; print(site.getsitepackages()[0])')/base.pth
	@.venv-docs/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

# The wheels with the C pass are made by a compiler that comes as a package, so every machine can make those of both processors. For
# other systems there is a wheel without the C pass, which is then compiled on first use, where there is a compiler.
dist: .venv-dist/.installed
	@.venv-dist/bin/python scripts/release/distributions.py

try-dist:
	@$(PYTHON) scripts/release/installs.py $(ARGS)

.venv-dist/.installed: scripts/release/requirements.txt | $(VENV)/bin/python
	@$(BIN)/python -m venv .venv-dist
	@.venv-dist/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

lint: $(VENV)/.installed-dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check --quiet .

types: $(VENV)/.installed-dev
	@$(BIN)/mypy

# TRL needs Python 3.11. Where there is only an older one, uv fetches a newer one.
$(VENV)/bin/python:
	@echo "setting up $(VENV) (once; a few minutes) ..."
	@if [ -n "$(PYTHON)" ]; then $(PYTHON) -m venv $(VENV); else \
		python3 -m venv .uv && .uv/bin/python -m pip install --quiet --disable-pip-version-check uv && \
		.uv/bin/uv venv --quiet --seed --python 3.12 $(VENV); fi

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml $(CONSTRAINTS)
	@$(TORCH)
	@$(PIP) --editable '.[train]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@$(PIP) --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .venv-verl .venv-docs .venv-dist site dist build .uv .pytest_cache .mypy_cache .ruff_cache .hypothesis
