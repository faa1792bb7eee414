# Every command makes the environment it needs. `make help` lists them.
#
#   PYTHON=python3.13 make test       another interpreter, in .venv-3.13
#   JOBS=0 make test                  tests in one process, not in as many as there are cores
#   make test PYTEST_ARGS="-k field"  arguments handed to pytest

.DEFAULT_GOAL := help
.PHONY: help demo test test-processes test-notebooks test-oldest fuzz mutants check format docs notebooks dist clean
.DELETE_ON_ERROR:

# The first that runs and is new enough: a name on the PATH may be a shim for a Python that is not active.
DEFAULT_PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
PYTHON ?= $(DEFAULT_PYTHON)
JOBS ?= auto
PYTEST_ARGS ?=
# Test processes that take a core each must not ask for more.
ONE_THREAD := $(if $(filter 0,$(JOBS)),,OMP_NUM_THREADS=1)

# "3.11", or nothing where the interpreter does not run or is too old
version_of = $(if $(1),$(shell $(1) -c \
	'import sys; v = sys.version_info; print("%d.%d" % v[:2] if v >= (3, 11) else "")' 2>/dev/null))
# pyenv's name for a Python that is not active does not run, its file does.
interpreter = $(if $(call version_of,$(1)),$(1),$(shell \
	ls -d "$$(pyenv root 2>/dev/null)"/versions/$(patsubst python%,%,$(notdir $(1))).*/bin/python3 2>/dev/null | tail -n 1))
INTERPRETER := $(call interpreter,$(PYTHON))
VERSION := $(call version_of,$(INTERPRETER))
VENV := $(if $(filter $(VERSION),$(call version_of,$(DEFAULT_PYTHON))),.venv,.venv-$(VERSION))
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check --no-input install --quiet

help:  ## list the commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 24

demo: $(VENV)/.installed  ## run the main job on the embedded data, into demo/
	$(PY) -m cellrank_velot demo --out demo

test: $(VENV)/.installed-test  ## run the test suite, but for the notebooks
	$(ONE_THREAD) $(PY) -m pytest -n $(JOBS) --dist worksteal -m "not notebook and not process" $(PYTEST_ARGS)

test-processes: $(VENV)/.installed-test  ## run the part of it that starts processes and clusters and measures memory
	$(ONE_THREAD) $(PY) -m pytest -n $(JOBS) --dist worksteal -m process $(PYTEST_ARGS)

test-notebooks: $(VENV)/.installed-test  ## run the part of it that runs the notebooks
	$(ONE_THREAD) $(PY) -m pytest -n $(JOBS) --dist worksteal -m notebook $(PYTEST_ARGS)

test-oldest: .venv-oldest/.installed-test  ## run the test suite with the oldest versions that pyproject.toml allows, all at once
	$(ONE_THREAD) NUMBA_CACHE_DIR=$(CURDIR)/.venv-oldest/numba .venv-oldest/bin/python -m pytest -n $(JOBS) --dist worksteal -m "not notebook and not process" $(PYTEST_ARGS)

fuzz: $(VENV)/.installed-test  ## draw 2500 new kinds of input and 500 jobs of the command line, and see what happens
	$(PY) -m pytest tests/test_fuzz.py tests/test_fuzz_cli.py --hypothesis-profile=nightly --hypothesis-show-statistics $(PYTEST_ARGS)

mutants: $(VENV)/.installed-test $(VENV)/.installed-dev  ## change the numerical core in 800 places, and see whether tests fail
	OMP_NUM_THREADS=1 $(PY) tests/benchmarks/mutants.py

check: $(VENV)/.installed-dev $(VENV)/.installed-test  ## ruff, mypy, the site, and the suite with its branches
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy
	@$(MAKE) --no-print-directory docs
	$(ONE_THREAD) $(PY) -m pytest -n $(JOBS) --dist worksteal --cov --cov-report=term-missing:skip-covered

format: $(VENV)/.installed-dev  ## let ruff repair what it can
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

docs: $(VENV)/.installed-docs  ## build the site into docs/_build/html, and check its links
	rm -rf docs/_build docs/generated
	$(PY) -m sphinx -W --keep-going -q -b html -j 2 docs docs/_build/html
	$(PY) docs/check_links.py docs/_build/html

notebooks: $(VENV)/.installed-test  ## run the notebooks anew, and keep what they print
	$(PY) notebooks/execute.py

dist: $(VENV)/.installed-dev  ## build the wheel and the source archive into dist/, and try each in a new environment
	rm -rf dist
	$(PY) -m build
	$(PY) -m twine check --strict dist/*
	$(PY) tests/check_dist.py dist

clean:  ## remove environments, builds, caches and the demo's results
	rm -rf .venv .venv-3.* .venv-oldest demo dist build mutants docs/_build docs/generated .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find cellrank_velot notebooks tests -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp per environment and one per extra: nothing is installed twice while pyproject.toml stays as it is.
$(VENV)/.python-$(VERSION):
	@test -n "$(VERSION)" || { \
		echo "$(if $(PYTHON),$(PYTHON) does not run or is older,no Python was found that runs and is not older) than 3.11;" \
			"choose one: PYTHON=/path/to/python3 make ..." >&2; exit 1; }
	$(INTERPRETER) -m venv --clear $(VENV)
	@touch $@

# torch first and by itself: once it is there, the second step is content with it.
$(VENV)/.installed $(VENV)/.installed-test $(VENV)/.installed-dev $(VENV)/.installed-docs: $(VENV)/.python-$(VERSION) pyproject.toml .constraints.txt
	@echo "Installing into $(VENV); the first time takes some minutes."
	@$(PIP) --constraint .constraints.txt torch || \
		echo "The torch of .constraints.txt is not to be had here; going on with the one that pip finds."
	@$(PIP) --editable '.$(patsubst -%,[%],$(subst $(VENV)/.installed,,$@))'
	@touch $@

# The oldest Python, too: the one of the oldest CellRank.
.venv-oldest/.installed-test: pyproject.toml tests/oldest.py
	@test -n "$(call interpreter,python3.11)" || { echo "The oldest versions need Python 3.11, and none was found." >&2; exit 1; }
	@echo "Installing the oldest versions into .venv-oldest; this takes some minutes."
	@$(call interpreter,python3.11) -m venv --clear .venv-oldest
	@.venv-oldest/bin/python tests/oldest.py > .venv-oldest/constraints.txt
	@.venv-oldest/bin/python -m pip --disable-pip-version-check --no-input install --quiet \
		--constraint .venv-oldest/constraints.txt --editable '.[test]'
	@touch $@
