# Two commands do everything: `make up` and `make test`. The rest are their neighbours.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
FAST := unit db api
# pip's progress where somebody watches, its errors alone where not.
QUIET := $(shell test -t 1 || echo --quiet)

.PHONY: up demo test check format bench install clean

up: install          ## start the whole platform; Ctrl-C ends it
	@exec $(BIN)/farebox up

demo: install        ## the same in a temporary place, and one customer played through it
	@exec $(BIN)/farebox demo

test: install        ## every test
	$(BIN)/python -m pytest

check: install       ## the fast loop: format, lint, types, imports, fast tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -n 2 $(addprefix tests/,$(FAST))

format: install      ## rewrite files the way `check` wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install       ## every benchmark; QUICK=1 for the short form
	@for bench in bench_platform bench_tools ledger wrong_keys; do $(BIN)/python -m benchmarks.$$bench $(if $(QUICK),--quick) || exit 1; done

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Farebox needs Python 3.11 or newer; {sys.executable} is {v.major}.{v.minor}. Try: make PYTHON=python3.12")'
	@echo "Installing into .venv (some minutes the first time: torch and Ray are large)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install $(QUIET) --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:               ## remove the installation, never data
	rm -rf .venv
