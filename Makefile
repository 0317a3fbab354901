# Both targets do all set-up on a fresh machine: a virtual environment in .venv, pinned by constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
# A module is compiled when it is first imported: to compile all of torch here would take 25 s of a processor.
PIP := $(BIN)/pip install --quiet --no-compile --disable-pip-version-check -c constraints.txt

# Where several processes share the cores, threads that wait should sleep: spinning ones slow torch tenfold. A process that is
# alone loses by it: the demo then takes half as long again.
test slow: export OMP_WAIT_POLICY ?= PASSIVE

.PHONY: demo test check slow docs dist clean

demo: .venv/.user
	$(BIN)/steindiff demo --outdir outputs/demo

test: .venv/.dev check
	$(BIN)/pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

slow: .venv/.dev
	$(BIN)/pytest -m slow

# The site, to be read from outputs/site/index.html; every warning is an error.
docs: .venv/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build

# What goes to a package index.
dist: .venv/.dev
	rm -rf dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/twine check --strict dist/*

.venv/.user: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch==2.13.0
	$(PIP) -e '.[cli,metrics,train]'
	touch $@

.venv/.dev: .venv/.user
	$(PIP) -e '.[dev]'
	touch $@

clean:
	rm -rf .venv outputs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
