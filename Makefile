# make demo    a model trained, tested and predicting on real pixels, in minutes, with a report to look at
# make test    the tests; `make test-all` also the slow ones
# Both set themselves up in .venv with pip, once.

PYTHON ?= python3
BIN := .venv/bin
export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: demo test test-all lint bench clean

.venv/ready: requirements.txt setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "visionzoo needs Python 3.11 or newer: make PYTHON=python3.12")'
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

demo: .venv/ready
	$(BIN)/zoo train segmentation/demo --data.root runs/demo_data
	$(BIN)/zoo test runs/segmentation/demo
	$(BIN)/zoo predict runs/segmentation/demo runs/demo_data/images/test -o runs/demo_predictions
	@echo "Look at the report: $$(ls -d runs/segmentation/demo/*/report.html | sort -V | tail -n 1)"

test: .venv/ready
	$(BIN)/python -m pytest

test-all: .venv/ready
	$(BIN)/python -m pytest -m "not gpu"

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: .venv/ready
	$(BIN)/python -m benchmarks

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
