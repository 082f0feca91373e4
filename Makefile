# Every target sets up the virtual environment that it needs; only Python with pip is assumed.
PYTHON ?= python3
VENV ?= .venv
SLOW ?= slow
OLDEST ?= 5.23.0
NEWEST ?= 5.24.0
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
PYTEST := -m pytest -n 2 --dist worksteal
# The tests that touch transformers.
ON_TRANSFORMERS := tests/engine tests/train tests/models tests/evaluate tests/cli/test_train.py

.PHONY: demo test test-slow test-oldest test-newest check format results wheel

demo: $(VENV)/.demo
	$(BIN)/prefopt demo

test: $(VENV)/.test
	$(BIN)/python $(PYTEST) -m "not slow"

test-slow: $(VENV)/.test
	$(BIN)/python $(PYTEST) -m "$(SLOW)"

# With the oldest and the newest transformers that are supported.
test-oldest: $(VENV)-transformers-$(OLDEST)/.test
	$(<D)/bin/python $(PYTEST) -m "not slow" $(ON_TRANSFORMERS)

test-newest: $(VENV)-transformers-$(NEWEST)/.test
	$(<D)/bin/python $(PYTEST) -m "not slow" $(ON_TRANSFORMERS)

check: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

format: $(VENV)/.test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Tables and pictures of README.md, benchmarks/README.md, docs/errata.md, docs/vectors.md, docs/walkthrough.md and docs/img
# from the committed benchmarks/results/*.json.
results: $(VENV)/.test
	$(BIN)/python benchmarks/tables.py
	$(BIN)/python benchmarks/walkthrough.py
	$(BIN)/python -m benchmarks.errata
	$(BIN)/python -m benchmarks.referee --pages

# A wheel in dist/. setuptools would pack what an earlier build left in build/.
wheel: $(VENV)/.test
	rm -rf build
	$(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist .

$(VENV)/.demo: pyproject.toml setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing prefopt into $(VENV) (a few minutes the first time)"
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.test: pyproject.toml setup.py constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing prefopt and its test tools into $(VENV) (a few minutes the first time)"
	$(PIP) install -c constraints.txt -e ".[test]"
	@touch $@ $(VENV)/.demo

# Another transformers on top of the packages of $(VENV).
$(VENV)-transformers-%/.test: $(VENV)/.test
	test -x $(@D)/bin/python || $(PYTHON) -m venv --without-pip $(@D)
	site=$$($(@D)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))") && \
	  $(BIN)/python -c "import sys; print(*(p for p in sys.path if 'site-packages' in p), sep='\n')" > $$site/base.pth
	$(PIP) --python $(@D)/bin/python install --no-deps --no-build-isolation -e .
	$(PIP) --python $(@D)/bin/python install transformers==$*
	@touch $@
