PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE = 1

.PHONY: demo test lint benchmark

demo: .venv/ready
	$(BIN)/redge-guidance generate --label negative --num-samples 16 --baseline

test: lint
	$(BIN)/python -m pytest

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/typing && mkdir -p build/typing/redge_guidance/checkpoints  # the package as it is when installed
	cp -r redge_guidance/. pipelines rewards build/typing/redge_guidance/
	cp checkpoints/__init__.py build/typing/redge_guidance/checkpoints/
	$(BIN)/mypy build/typing/redge_guidance

benchmark: .venv/ready
	$(BIN)/python benchmarks/sentiment.py

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@
