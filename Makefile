PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

.PHONY: help venv search test lint types soak wheel clean

help:             ## list the targets
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 10

venv: $(INSTALLED)        ## make .venv as constraints.txt says (PYTHON=python3.12 picks another Python)

search: $(INSTALLED)      ## search settings for the bundled image workload (ARGS="--time-budget 5m" adds options)
	$(BIN)/feedrate search images $(ARGS)

# Not 'python -m pytest', which puts this folder on sys.path, where search/ is importable a second time, as 'search'.
test: $(INSTALLED)        ## run the tests (ARGS="-k space" adds options)
	$(BIN)/pytest -m "not soak" $(ARGS)

soak: $(INSTALLED)        ## run the tests that take minutes
	$(BIN)/pytest -m soak --timeout=3600 $(ARGS)

lint: $(INSTALLED)        ## ruff
	$(BIN)/ruff check .

types: $(INSTALLED)       ## mypy --strict on what the wheel contains
	bash .ci/types.sh

wheel: $(INSTALLED)       ## build dist/feedrate-*.whl, which cluster.yaml installs
	rm -rf dist
	bash .ci/wheel.sh dist

clean:            ## remove what make made; runs (feedrate-runs/) stay
	rm -rf .venv dist build *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name .git -prune -o -name __pycache__ -prune -exec rm -rf {} +

refuse = { echo "make: $(1); feedrate needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }

$(INSTALLED): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || $(call refuse,'$(PYTHON)' is not found)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || $(call refuse,'$(PYTHON)' is $$($(PYTHON) -V))
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || $(call refuse,'$(PYTHON)' lacks venv (Debian package python3-venv))
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pip setuptools wheel
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e '.[dev]'
	@touch $@
