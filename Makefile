# `make quickstart` and `make test` set everything up by themselves, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed

export DETECTRON2_DATASETS ?= datasets

.PHONY: quickstart test lint docs install clean

quickstart: $(INSTALLED)
	$(BIN)/python -W ignore::UserWarning examples/quickstart/quickstart.py

test: $(INSTALLED)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

install: $(INSTALLED)

$(INSTALLED): requirements-dev.txt setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; ok = (3, 10) <= sys.version_info[:2] <= (3, 13); \
	sys.exit(0 if ok else "aid_d2 needs Python 3.10 to 3.13: make PYTHON=/path/to/python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv==0.13.8
	$(BIN)/uv pip install --compile-bytecode --python $(BIN)/python -r requirements-dev.txt -e .
	touch $@

clean:
	rm -rf $(VENV) build site *.egg-info .pytest_cache
