# Each command makes .venv on first use and installs what requirements.lock pins. `make demo` and `make test` are the two to start with.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
BROWSER := .venv/.browser

.DEFAULT_GOAL := help
.PHONY: help install demo app worker test check format lint types arrows torture screenshot lock clean

help: ## say what there is
	@grep -hE '^[a-z]+:.*##' Makefile | awk -F':.*## ' '{printf "  make %-11s %s\n", $$1, $$2}'

install: $(READY) ## make .venv and install everything into it
	@echo "Ready. Next: make demo, make app, or $(BIN)/philab --help"

demo: $(READY) ## run the whole chain on a shipped model: task, five contributors, submissions, a finding
	@$(BIN)/philab demo

app: $(READY) ## open the lab in the browser (http://localhost:8000)
	@$(BIN)/philab app

worker: $(READY) ## work off queued runs in a process of its own
	@$(BIN)/philab worker

test: $(READY) $(BROWSER) ## the whole test suite, with real Postgres and a real browser
	$(BIN)/python -m pytest

check: $(READY) format lint types arrows ## format, lint, types and import arrows

format: $(READY)
	$(BIN)/ruff format --check .

lint: $(READY)
	$(BIN)/ruff check .

types: $(READY)
	$(BIN)/basedpyright

arrows: $(READY)
	$(BIN)/lint-imports

torture: $(READY) ## the stress, crash and simulation tests with large counts (up to two hours)
	$(BIN)/python -m pytest -m torture -s

screenshot: $(READY) $(BROWSER) ## take the README's picture from a real run
	$(BIN)/python -m scripts.screenshot

lock: ## resolve pyproject.toml afresh and write requirements.lock
	PYTHON=$(PYTHON) .ci/lock

clean: ## remove .venv and build leftovers; data and results stay
	rm -rf .venv build dist *.egg-info

$(READY): requirements.lock pyproject.toml
	@PYTHON="$(PYTHON)" .ci/install
	@touch $@

$(BROWSER): $(READY)
	@.ci/browser
	@touch $@
