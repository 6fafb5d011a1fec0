# make demo: set up and run the quickstart sweep.  make test: set up and run the tests.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
HOME_DIR ?= .stillhouse
TEST_PROCESSES ?= 2
# Each process of a sweep imports torch and Ray; with compiled files the import takes half of the time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo ui test lint types imports check wheel wheel-test bench clean
.DELETE_ON_ERROR:

help:
	@echo "make demo        set up, then run the quickstart sweep (about 2 minutes after the installation)"
	@echo "make ui          serve MLflow with the runs of the demo"
	@echo "make test        set up, then run the tests"
	@echo "make check       linters, types, import contract"
	@echo "make wheel-test  build the wheel, and run a sweep with it in a separate environment"

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "stillhouse needs Python 3.11 or later; set PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/stillhouse sweep search_spaces/quickstart.yaml --home $(HOME_DIR)

ui: setup
	$(BIN)/stillhouse ui quickstart --home $(HOME_DIR)

test: setup
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

imports: setup
	$(BIN)/lint-imports

check: lint types imports

wheel: setup
	rm -rf dist
	$(BIN)/python -m build --wheel --outdir dist >/dev/null

wheel-test: wheel
	environment=$$(mktemp -d -t stillhouse-wheel-XXXXXX); trap 'rm -rf "$$environment"' EXIT; sh tests/wheel.sh $(BIN)/python "$$environment" dist/*.whl

bench: setup
	for benchmark in benchmarks/bench_*.py; do $(BIN)/python $$benchmark || exit 1; done

clean:
	rm -rf $(VENV) dist build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
