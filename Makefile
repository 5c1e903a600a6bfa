# Everything needs only Python 3.11 on a fresh machine: each goal makes .venv from the pins first.
PYTHON ?= python3.11
BIN := .venv/bin
export MPLBACKEND := Agg

.PHONY: install demo test test-full docs lint format clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv || python3 -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	rm -rf demo-store demo-store-slides
	$(BIN)/spared-fm demo --store demo-store

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not full" --numprocesses 2 --dist loadfile

test-full: install
	$(BIN)/python -m pytest -m full

docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv demo-store demo-store-slides
