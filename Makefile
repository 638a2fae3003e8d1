# Two commands do everything: `make up` and `make test`. The rest are their neighbours.
PYTHON ?= python3
# pip's progress where somebody watches, its errors alone where not.
QUIET := $(shell test -t 1 || echo --quiet)
BIN := .venv/bin
STAMP := .venv/.installed
# Models whose packages pin other versions run in environments of their own, .venv-speech and .venv-chat.
ENVIRONMENTS := speech chat
# Installed last, without what it names: a demo page's toolkit, and torchaudio.
speech_BARE := qwen-tts==0.1.1
# The list is whole: what it leaves out comes from .venv, or is a part that nothing here starts.
chat_FLAGS := --no-deps
PIP_INSTALL := -m pip install $(QUIET) --disable-pip-version-check
FAST := unit db api
BENCHES ?= bench_platform bench_tools ledger wrong_keys batching
SLOW := serve browser chaos cluster

.PHONY: up demo test lint check format bench install $(ENVIRONMENTS) clean

up: install          ## start the whole platform; Ctrl-C ends it
	@exec $(BIN)/farebox up

demo: install        ## the same in a temporary place, and one customer played through it
	@exec $(BIN)/farebox demo

test: install        ## every test: the fast tiers and the models side by side, then those that need the machine
	$(BIN)/python -m pytest -n 2 $(addprefix tests/,$(FAST))
	$(BIN)/python -m pytest -n 2 --dist loadfile tests/models
	$(BIN)/python -m pytest $(addprefix tests/,$(SLOW))

lint: install        ## format, lint, types, imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint          ## the fast loop: the same and the fast tests
	$(BIN)/python -m pytest -n 2 $(addprefix tests/,$(FAST))

format: install      ## rewrite files the way `check` wants them
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install       ## every benchmark; QUICK=1 for the short form
	@for bench in $(BENCHES); do $(BIN)/python -m benchmarks.$$bench $(if $(QUICK),--quick) || exit 1; done

install: $(STAMP)
	@for name in $(ENVIRONMENTS); do $(MAKE) --no-print-directory .venv-$$name/.installed || echo "The models of .venv-$$name are off: it could not be made. Everything else works; try again with: make $$name"; done

$(ENVIRONMENTS): %: .venv-%/.installed  ## the environment of some models alone

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Farebox needs Python 3.11 or newer; {sys.executable} is {v.major}.{v.minor}. Try: make PYTHON=python3.12")'
	@echo "Installing into .venv (some minutes the first time: torch and Ray are large)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python $(PIP_INSTALL) --constraint constraints.txt --editable '.[dev]'
	@touch $@

.venv-%/.installed: deployments/environments/%.txt | $(STAMP)
	@echo "Installing into .venv-$* (its models' own versions)"
	@$(PYTHON) -m venv .venv-$*
	@.venv-$*/bin/python $(PIP_INSTALL) $($*_FLAGS) --requirement $<
	@$(if $($*_BARE),.venv-$*/bin/python $(PIP_INSTALL) --no-deps $($*_BARE))
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(" + repr(sysconfig.get_path("purelib")) + ")")' \
		> "$$(.venv-$*/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/farebox.pth"
	@touch $@

clean:               ## remove the installation, never data
	rm -rf .venv $(addprefix .venv-,$(ENVIRONMENTS))
