SHELL := /bin/sh
BIN := .venv/bin
# A stamp for each PYTHON asked for, so that asking for another one sets up again.
STAMP := .venv/.setup$(subst /,_,$(PYTHON))
SOURCES := $(shell find libs services -type f -not -path '*/__pycache__/*')
# Extra arguments of `hexagent demo` and of pytest.
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup native demo test lint format protos protos-check protos-breaking baseline lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv from requirements.lock (PYTHON=python3.12 chooses the interpreter)

$(STAMP): requirements.lock pyproject.toml tools/setup.sh
	@sh tools/setup.sh $(PYTHON)
	@touch $@

native: .native/bin/hexagent ## make .native: the core and the simulator compiled (needs a C compiler and Python.h)

.native/bin/hexagent: $(STAMP) tools/native.sh tools/compile_core.py $(SOURCES)
	@sh tools/native.sh

demo: setup ## run agent workflows over an emulated mixed cluster and compare the policies
	@$(BIN)/hexagent demo $(ARGS)

test: setup ## run the tests (ARGS="tests/unit -k name" narrows them)
	@$(BIN)/pytest $(ARGS)

lint: setup ## every check that runs no product code
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/buf lint
	$(BIN)/buf format -d --exit-code
	@$(MAKE) --no-print-directory protos-breaking protos-check

format: setup ## format Python and protos in place
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .
	$(BIN)/buf format -w

protos: setup ## make libs/hexagent/api from protos/
	@$(BIN)/python tools/stubs.py generate

protos-check: setup ## fail where libs/hexagent/api is not what protos/ gives
	@$(BIN)/python tools/stubs.py check

protos-breaking: setup ## fail where protos/ breaks the last tagged release
	@sh tools/breaking.sh

baseline: setup ## record protos/ as the release that later changes are checked against
	$(BIN)/buf build -o protos/baseline.binpb

# No index, no URL and no annotation goes into the lock, so it holds wherever the packages come from. The fewest
# versions over both Pythons, so that both run the same code. The group `tables` and the extra `trtllm` stay out.
lock: ## resolve requirements.lock again (needs uv; LOCK_ARGS=--upgrade moves the pins)
	uv pip compile pyproject.toml --group dev --universal --python-version 3.11 --fork-strategy fewest \
		--generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links \
		--custom-compile-command "make lock" --quiet $(LOCK_ARGS) --output-file requirements.lock
	@! grep -nE '://' requirements.lock

clean: ## remove .venv, .native, caches and build results
	rm -rf .venv .native build dist gen .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find libs services tests tools -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
