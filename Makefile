# `make demo` and `make test` set up .venv when there is none; nothing else is needed but Python with pip.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test check format results

demo: $(VENV)/.demo
	$(BIN)/prefopt demo

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: $(VENV)/.test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(MAKE) test

# Tables and pictures of README.md, benchmarks/README.md and docs/img from the committed benchmarks/results/*.json.
results: $(VENV)/.test
	$(BIN)/python benchmarks/tables.py

format: $(VENV)/.test
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/.demo: pyproject.toml setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing prefopt into $(VENV) (a few minutes the first time)"
	$(PIP) -e .
	@touch $@

$(VENV)/.test: pyproject.toml setup.py
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing prefopt and its test tools into $(VENV) (a few minutes the first time)"
	$(PIP) -e ".[test]"
	@touch $@ $(VENV)/.demo
