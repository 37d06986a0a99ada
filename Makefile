# Everything runs in .venv, which `make install` sets up with the exact versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest --quiet --numprocesses 2 --dist worksteal

.PHONY: install demo test check bench same fuzz format clean

install: .venv/.installed

# torch comes first and by its exact version, so that the build at hand is taken and no other.
.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	$(BIN)/frostline demo

test: install
	$(PYTEST) -m "not slow"

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PYTEST)

bench: install
	$(BIN)/python benchmarks/frozen_bottom.py --memory

same: install
	$(BIN)/python benchmarks/same_training.py
	$(BIN)/python benchmarks/same_training.py --attach

# Damaged inputs on every surface: `make fuzz SECONDS=60`.
SECONDS ?= 600
fuzz: install
	$(BIN)/python benchmarks/fuzz.py --seconds $(SECONDS)

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache runs
