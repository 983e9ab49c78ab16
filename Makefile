PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

# Hundreds of test processes import feedrate, and several pytest processes rewrite each test file: byte code saves 0.1 s in each of the
# former, and half of the time to collect in the latter.
unexport PYTHONDONTWRITEBYTECODE

OLDEST_PYTHON ?= $(shell command -v python3.11 || echo $(PYTHON))
OLDEST_BIN := .venv-oldest/bin
FRAMEWORKS_BIN := .venv-frameworks/bin
FRAMEWORKS := accelerate datasets lightning monai torchdata transformers webdataset
# What the oldest versions change: tables and pages (pandas, pyarrow, plotly, rich), studies (Optuna), processes (psutil), images
# (Pillow), and every command with one search (Ray). Other versions of torch and Python change trials too.
OLDEST_TESTS := every_command versions install laptop load page questions rounds summary export best two_runs runs schema result \
  storage brain reconcile sampler pruner observed expectation domains process conditions images estimate verdict display
# Without test_install, which compares the environment with the pins of constraints.txt.
VERSIONS_TESTS := $(filter-out install,$(OLDEST_TESTS)) config build_loader step measure failure template_main isolated kept_child accelerator
test_files = $(foreach name,$(1),$(wildcard tests/test_$(name).py tests/*/test_$(name).py tests/*/*/test_$(name).py))

FAST := tests/test_fences.py tests/test_architecture.py tests/analysis tests/search/space tests/search/session tests/search/setup tests/search/shipping

# Processes among which the files of `make test` are shared. Each has its own /tmp and /dev/shm (tests/shards.py), which needs root;
# otherwise one process runs all. tests/conftest.py says which tests stay together, and in which order they begin.
JOBS ?= $(shell unshare --mount true 2>/dev/null && echo 3 || echo 0)
SHARED := -n $(JOBS) --dist loadgroup --no-loadscope-reorder

.PHONY: help venv environments search test test-fast test-slow test-oldest test-frameworks test-versions lint types soak wheel clean

help:             ## list the targets
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:.*## /\t/' | expand -t 15

venv: $(INSTALLED)        ## make .venv as constraints.txt says (PYTHON=python3.12 picks another Python)

environments: $(INSTALLED) .venv-oldest/installed .venv-frameworks/installed  ## make all three environments (-j3 makes them at once)

search: $(INSTALLED)      ## search settings for the bundled image workload (ARGS="--time-budget 5m" adds options)
	$(BIN)/feedrate search images $(ARGS)

# Not 'python -m pytest', which puts this folder on sys.path, where search/ is importable a second time, as 'search'.
test: $(INSTALLED)        ## run the tests, in JOBS processes (ARGS="-k space" adds options)
	$(BIN)/pytest -m "not soak and not slow and not oldest and not frameworks" $(SHARED) $(ARGS)

test-slow: $(INSTALLED)   ## run the slow tests: examples of the documents, whole searches, machines that share nothing (namespaces, which need root)
	$(BIN)/pytest -m "slow and not soak and not frameworks" $(SHARED) $(ARGS)

test-fast: $(INSTALLED)   ## run the tests of plain logic, in a minute and a half
	$(BIN)/pytest -m "not soak and not slow and not oldest" $(SHARED) $(FAST) $(ARGS)

test-oldest: .venv-oldest/installed  ## run the commands and the fast tests with the oldest versions, in .venv-oldest
	$(OLDEST_BIN)/pytest -m "not soak and not slow" $(SHARED) $(call test_files,$(OLDEST_TESTS)) $(ARGS)

test-frameworks: .venv-frameworks/installed  ## run training scripts of Lightning, Hugging Face, ... with the real packages, in .venv-frameworks
	$(FRAMEWORKS_BIN)/pytest -m frameworks -n $(JOBS) tests/frameworks $(ARGS)

test-versions:    ## run these and the tests of trials with VERSIONS="torch==2.6.0" and PYTHON=python3.12, in .venv-versions (docs/versions.md)
	@$(call check_python)
	rm -rf .venv-versions
	$(PYTHON) -m venv .venv-versions
	.venv-versions/bin/python -m pip install --quiet --disable-pip-version-check $(if $(VERSIONS),,-c constraints.txt) \
	  $(VERSIONS) -e '.[cluster,postgresql]' pytest pytest-timeout pytest-xdist build setuptools wheel
	.venv-versions/bin/feedrate version
	.venv-versions/bin/pytest -m "not soak and not slow" $(SHARED) $(call test_files,$(VERSIONS_TESTS)) $(ARGS)

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
	rm -rf .venv .venv-oldest .venv-frameworks .venv-versions dist build *.egg-info .mypy_cache .ruff_cache .pytest_cache
	find . -name .git -prune -o -name __pycache__ -prune -exec rm -rf {} +

refuse = { echo "make: $(1); feedrate needs Python 3.11 or newer: make PYTHON=/path/to/python3.11" >&2; exit 1; }

define check_python
command -v $(PYTHON) >/dev/null || $(call refuse,'$(PYTHON)' is not found); \
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || $(call refuse,'$(PYTHON)' is $$($(PYTHON) -V)); \
$(PYTHON) -c 'import ensurepip' 2>/dev/null || $(call refuse,'$(PYTHON)' lacks venv (Debian package python3-venv))
endef

$(INSTALLED): pyproject.toml constraints.txt
	@$(call check_python)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pip setuptools wheel
	$(BIN)/python -m pip install --quiet --no-build-isolation -c constraints.txt -e '.[dev]'
	@touch $@

.venv-oldest/installed: pyproject.toml constraints-oldest.txt
	@$(OLDEST_PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || \
	  { echo "make: the oldest versions are those for Python 3.11: make test-oldest OLDEST_PYTHON=/path/to/python3.11" >&2; exit 1; }
	$(OLDEST_PYTHON) -m venv .venv-oldest
	$(OLDEST_BIN)/python -m pip install --quiet --disable-pip-version-check -r constraints-oldest.txt
	$(OLDEST_BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	$(OLDEST_BIN)/python -m pip check
	@touch $@

# timm needs torchvision, which other frameworks import wherever they find it, and which cannot be imported here as it is
# (constraints-frameworks.txt says why): both are in a folder of their own.
.venv-frameworks/installed: pyproject.toml constraints-frameworks.txt
	@$(call check_python)
	$(PYTHON) -m venv .venv-frameworks
	$(FRAMEWORKS_BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints-frameworks.txt pip setuptools wheel
	$(FRAMEWORKS_BIN)/python -m pip install --quiet --no-build-isolation -c constraints-frameworks.txt $(FRAMEWORKS) pytest pytest-timeout pytest-xdist -e .
	$(FRAMEWORKS_BIN)/python -m pip install --quiet --no-deps --upgrade -c constraints-frameworks.txt --target .venv-frameworks/vision timm torchvision
	@touch $@
