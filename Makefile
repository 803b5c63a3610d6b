# Needs Python 3.11 or newer and make; all else goes into virtual environments in this folder.
PYTHON ?= python3
VENV ?= .venv
VENV_BARE ?= $(VENV)-bare
ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo environment environment-bare test test-bare coverage test-unmeasured lint format dashboards pictures \
	bench guard build clean

# The editable install is a tree of links below build/, one for each file and shared by all environments, so an added
# or removed file calls for another install. Hence a stamp's name has the set of files in it, each install drops the
# stamps of other sets, and the stamps lie in build/: without the links they are worth nothing.
# What nobody imports is not compiled: half of the time of an install.
FILES := $(shell find src listeners dashboards -type f ! -name '*.py[co]' | LC_ALL=C sort | cksum | cut -d ' ' -f 1)
stamp = build/.installed/$(subst /,_,$(1))-$(2)-$(FILES)
DEMO := $(call stamp,$(VENV),demo)
DEV := $(call stamp,$(VENV),dev)
BARE := $(call stamp,$(VENV_BARE),test)

define install
	$(1)/bin/python -m pip install -qq --no-compile --editable '.[$(2)]'
	@mkdir -p $(@D) && find $(@D) -type f ! -name '*-$(FILES)' -delete && touch $@
endef

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo 'ARGS="..." goes to the demo, pytest or the benchmarks; PYTHON=python3.13 VENV=.venv-3.13 uses another Python'

demo: $(DEMO) ## circuits that open and recover on real HTTP, explained as it happens
	$(VENV)/bin/python -m fluxgate demo $(ARGS)

environment: $(DEV) ## every optional library and tool, and the package itself, in VENV

environment-bare: $(BARE)

test: $(DEV) ## all tests, every optional library installed
	$(VENV)/bin/python -m pytest $(ARGS)

test-bare: $(BARE) ## all tests that need no optional library, none installed
	FLUXGATE_BARE=1 $(VENV_BARE)/bin/python -m pytest $(ARGS)

ENGINE := --include='src/fluxgate/*.py' --omit='src/fluxgate/cli.py,src/fluxgate/__main__.py'

# The packaging tests import other copies of the code: nothing to measure there. The proof of the dashboards sends hours
# of calls through code that others test, which takes minutes under measurement.
UNMEASURED := tests/test_packaging.py tests/test_dashboards_proof.py

coverage: $(DEV) ## lines and branches, of everything; under 100 % of the engine is a failure
	$(VENV)/bin/coverage erase
	$(VENV)/bin/coverage run -m pytest $(UNMEASURED:%=--ignore=%) $(ARGS)
	$(VENV)/bin/coverage combine --quiet
	@echo '--- everything'
	$(VENV)/bin/coverage report
	@echo '--- the engine'
	$(VENV)/bin/coverage report $(ENGINE) --fail-under=100

test-unmeasured: $(DEV) ## the tests that `make coverage` leaves out
	$(VENV)/bin/python -m pytest $(UNMEASURED) $(ARGS)

lint: $(DEV) ## ruff, mypy and pyright
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

format: $(DEV) ## let ruff sort imports and format
	$(VENV)/bin/ruff check --fix-only .
	$(VENV)/bin/ruff format .

dashboards: $(DEV) ## build the dashboards' JSON anew
	$(VENV)/bin/python -m fluxgate.dashboards.build dashboards/grafana

pictures: $(DEV) ## draw the pictures of docs/dashboards anew; needs Debian's prometheus
	$(VENV)/bin/python -m tests.pictures

bench: $(DEV) ## Fluxgate beside its peers, into docs/benchmarks.md; ARGS=--quick is rough
	$(VENV)/bin/python -m benchmarks $(ARGS)

guard: $(DEV) ## the budgets, with headroom
	$(VENV)/bin/python -m benchmarks.guard $(ARGS)

build: $(DEV) ## wheel and sdist in dist/
	$(VENV)/bin/python -m build

clean: ## remove all that make has made, environments included
	rm -rf .venv .venv-* build dist *.egg-info .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find src listeners dashboards benchmarks tests -type d -name __pycache__ -prune -exec rm -rf {} +

%/pyvenv.cfg:
	$(PYTHON) -m venv $*

# All that the demo needs is among what the tests need.
$(DEV): pyproject.toml $(VENV)/pyvenv.cfg
	$(call install,$(VENV),dev)
	@touch $(DEMO)

$(DEMO): pyproject.toml $(VENV)/pyvenv.cfg
	$(call install,$(VENV),demo)

$(BARE): pyproject.toml $(VENV_BARE)/pyvenv.cfg
	$(call install,$(VENV_BARE),test)
