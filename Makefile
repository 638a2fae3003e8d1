# Two commands do everything: `make up` and `make test`. The rest are their neighbours.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# Qwen3-TTS runs in an environment of its own: its package pins other versions.
SPEECH := .venv-speech
SPEECH_STAMP := $(SPEECH)/.installed
FAST := unit db api
SLOW := models serve browser chaos cluster
# pip's progress where somebody watches, its errors alone where not.
QUIET := $(shell test -t 1 || echo --quiet)

.PHONY: up demo test lint check format bench install speech clean

up: install          ## start the whole platform; Ctrl-C ends it
	@exec $(BIN)/farebox up

demo: install        ## the same in a temporary place, and one customer played through it
	@exec $(BIN)/farebox demo

test: install        ## every test: the fast tiers side by side, then those that need the machine for themselves
	$(BIN)/python -m pytest -n 2 $(addprefix tests/,$(FAST))
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
	@for bench in bench_platform bench_tools ledger wrong_keys batching; do $(BIN)/python -m benchmarks.$$bench $(if $(QUICK),--quick) || exit 1; done

install: $(STAMP)
	@$(MAKE) --no-print-directory $(SPEECH_STAMP) || echo "Speech is off: $(SPEECH) could not be made. Everything else works; try again with: make speech"

speech: $(SPEECH_STAMP)  ## the environment of the speech models alone

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(v < (3, 11) and f"Farebox needs Python 3.11 or newer; {sys.executable} is {v.major}.{v.minor}. Try: make PYTHON=python3.12")'
	@echo "Installing into .venv (some minutes the first time: torch and Ray are large)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install $(QUIET) --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(SPEECH_STAMP): deployments/environments/speech.txt | $(STAMP)
	@echo "Installing into $(SPEECH) (the speech models' own versions)"
	@$(PYTHON) -m venv $(SPEECH)
	@$(SPEECH)/bin/python -m pip install $(QUIET) --disable-pip-version-check --requirement $<
	@$(SPEECH)/bin/python -m pip install $(QUIET) --disable-pip-version-check --no-deps qwen-tts==0.1.1
	@$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(" + repr(sysconfig.get_path("purelib")) + ")")' \
		> "$$($(SPEECH)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/farebox.pth"
	@touch $@

clean:               ## remove the installation, never data
	rm -rf .venv $(SPEECH)
