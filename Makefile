# Every target sets up .venv when it is missing or when the project's requirements have changed.
PYTHON ?= python3
PY := .venv/bin/python

.PHONY: help demo test test-slow lint format bench clean

help:
	@echo "make demo       the phase-2 sweep on the built-in data, on two CPU cores"
	@echo "make test       the tests"
	@echo "make test-slow  the minutes-long tests: kills, restarts, object storage"
	@echo "make lint       ruff and mypy"
	@echo "make bench      what the README's figures come from"

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/ready
	$(PY) -m raylab.tune epic_phase2 --demo

test: .venv/ready
	$(PY) -m pytest

test-slow: .venv/ready
	$(PY) -m pytest -m slow

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: .venv/ready
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench: .venv/ready
	$(PY) benchmarks/temporal_order.py

clean:
	rm -rf .venv build dist *.egg-info
