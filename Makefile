# Every target sets up .venv when it is missing or when the project's requirements have changed.
PYTHON ?= python3
PY := .venv/bin/python

.PHONY: help demo test test-slow test-slurm test-browser docs docs-links lint format bench clean

help:
	@echo "make demo       a clip store of the built-in data and the phase-2 sweep on it, on two CPU cores"
	@echo "make test       the tests"
	@echo "make test-slow  the minutes-long tests: kills, restarts, object storage"
	@echo "make test-slurm the tests on a SLURM of namespaces on this machine: as root, minutes long"
	@echo "make test-browser the pages in a headless Chromium, where there is one"
	@echo "make docs       the guides and the reference as a website, docs/_build/html/index.html"
	@echo "make docs-links which links to elsewhere are dead: needs internet"
	@echo "make lint       ruff and mypy"
	@echo "make bench      the figures in README.md and benchmarks/README.md: an hour"

.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --upgrade pip
	$(PY) -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: .venv/ready
	$(PY) -m raylab.prepare epic_phase2 --demo
	$(PY) -m raylab.tune epic_phase2 --demo

test: .venv/ready
	$(PY) -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-slow: .venv/ready
	$(PY) -m pytest -m slow --numprocesses 3 --dist loadfile --no-loadscope-reorder

test-slurm: .venv/ready
	$(PY) -m pytest -m slurm tests/cluster/slurm

test-browser: .venv/ready
	$(PY) -m pytest -m browser tests/browser

docs: .venv/ready
	$(PY) -m sphinx --builder html --fail-on-warning --keep-going --quiet docs docs/_build/html

docs-links: .venv/ready
	$(PY) -m sphinx --builder linkcheck --keep-going --quiet docs docs/_build/linkcheck

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: .venv/ready
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench: .venv/ready
	for benchmark in decode clip_index step_time sweep_overhead store_fidelity temporal_order \
		distillation_gain distillation_cache keyframes_gain frozen_features handcrafted report; do \
		$(PY) benchmarks/$$benchmark.py || exit; \
	done

clean:
	rm -rf .venv docs/_build docs/generated build dist *.egg-info
