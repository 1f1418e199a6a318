PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE = 1

# What depends on the library that moves most, with its lowest and its newest release that are allowed.
VERSIONS := lowest newest
lowest := transformers==5.0.0
newest := transformers
VERSION_TESTS := tests/published tests/pipelines/test_families.py tests/redge_guidance/test_hosts.py \
	tests/redge_guidance/test_callables.py tests/redge_guidance/test_what_cannot_draw.py \
	tests/rewards/reading/test_kinds_of_models.py tests/pipelines/test_kinds_of_models.py

.PHONY: demo test test-versions lint benchmark mutants

demo: .venv/ready
	$(BIN)/redge-guidance generate --label negative --samples-per-prompt 16 --baseline

test: lint
	$(BIN)/python -m pytest -n auto --dist worksteal

test-versions: $(VERSIONS:%=.versions/%/ready)
	for version in $(VERSIONS); do \
		.versions/$$version/bin/python -c "import transformers; print('transformers', transformers.__version__)" && \
		.versions/$$version/bin/python -m pytest -n auto -q $(VERSION_TESTS) || exit 1; \
	done

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

# An environment on top of the first one, which has what differs.
.versions/%/ready: .venv/ready
	rm -rf .versions/$*
	$(PYTHON) -m venv .versions/$*
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > \
		$$(.versions/$*/bin/python -c "import site; print(site.getsitepackages()[0])")/below.pth
	.versions/$*/bin/python -m pip install --quiet --upgrade "$($*)"
	touch $@
