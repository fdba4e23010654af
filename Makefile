# Every target sets up .venv by itself when it is missing or older than pyproject.toml and constraints.txt.
# On Windows, or without make, the README gives the same steps as plain commands.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python
STAMP := $(VENV)/.ready
# Two test processes: torch threads inside them would only get in each other's way.
TEST_ENV := QT_QPA_PLATFORM=offscreen OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
DEMO_OUT ?= out/demo

.PHONY: setup run demo test check bench format clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Quantbench needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev,cluster]'
	touch $(STAMP)

run: $(STAMP)
	$(RUN) main.py

demo: $(STAMP)
	$(RUN) -m resources.demo --out $(DEMO_OUT)

test: $(STAMP)
	$(TEST_ENV) $(RUN) -m pytest -n 2 --dist loadfile

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(RUN) -m benchmarks

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist out *.egg-info
