# make quickstart                    build a dataset of generated clips, pre-train and fine-tune a small model, show what it learned
# make quickstart VIDEOS=/my/videos  the same on a folder of your own videos
# make learn                         pre-training against none, with few labels and with all: a table and a plot, some 20 minutes
# make demo                          a page to drop a video on: it predicts and reconstructs, with the quickstart's models or
#                                    WEIGHTS="FILE RUN ..." (and LABELS=FILE, PORT=N)
# make install                       only .venv, for `source .venv/bin/activate`
# make test                          lint, types and tests
# make test-all                      the same with the slow ones, too: kills, full disks, torchrun
# make docs-test                     every command of README.md and docs/ in a sandbox, in small where two cores are too few for it
# make clean                         remove the virtual environment and caches; datasets and runs stay

PYTHON ?= python3
VIDEOS ?=
WEIGHTS ?=
LABELS ?=
PORT ?=
BIN := .venv/bin
# compiled when first imported: of 7 GB little is, and compiling all of it takes half a minute of a core
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check --constraint constraints.txt
# or it would be compiled at every import, 17 s for torch
unexport PYTHONDONTWRITEBYTECODE

.PHONY: quickstart learn demo install test test-all docs-test lint clean

quickstart: .venv/installed
	@$(BIN)/python quickstart.py $(if $(VIDEOS),--videos "$(VIDEOS)")

learn: .venv/installed
	$(BIN)/tubecell learning --parts labels --seeds 1 --methods scratch pretrained --shares 5 100

demo: .venv/demo
	@$(BIN)/tubecell demo $(WEIGHTS) $(if $(LABELS),--labels "$(LABELS)") $(if $(PORT),--port $(PORT))

install: .venv/installed

# two at a time: they wait for processes more than they compute; with one thread each, which takes half of the CPU time of two
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist loadfile --durations 15

test: lint
	$(PYTEST) -m "not slow"

test-all: lint
	$(PYTEST)

docs-test: .venv/dev
	$(PYTEST) --dist load tests/docs

lint: .venv/dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --num-workers 2

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(f"tubecell needs Python 3.11 or newer; {sys.executable} is {sys.version.split()[0]}. Try: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv

.venv/installed: pyproject.toml setup.py constraints.txt | .venv/bin/python
	$(PIP) --editable '.[all]'
	@touch $@

# Gradio
.venv/demo: .venv/installed
	$(PIP) --editable '.[demo]'
	@touch $@

# the same, and what the tests need besides: Ray, a local S3 server, the peers of the benchmarks, a driver of Chromium; in one call
.venv/dev: pyproject.toml setup.py constraints.txt | .venv/bin/python
	$(PIP) --editable '.[dev]'
	@touch $(@D)/installed $@

clean:
	rm -rf .venv .mypy_cache .ruff_cache *.egg-info build
	find pipeline -name 'lib*.so' -delete
	find . -name __pycache__ -prune -exec rm -rf {} +
