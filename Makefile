PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE = 1

.PHONY: demo test lint benchmark mutants

demo: .venv/ready
	$(BIN)/redge-guidance generate --label negative --samples-per-prompt 16 --baseline

test: lint
	$(BIN)/python -m pytest -n auto

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy redge_guidance

mutants: .venv/ready
	$(BIN)/python tests/mutants.py

benchmark: .venv/ready
	$(BIN)/python benchmarks/sentiment.py

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@
