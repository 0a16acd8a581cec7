# goan: `make demo` renders the quick start, `make test` runs the tests; both install what they need first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help install demo examples smoke test test-cuda check format tiny tiny-eval picture bench-lora bench-batch bench-peers bench-startup clean
help:
	@echo "make demo    install, render the quick start, and say where the video is"
	@echo "make examples  render every job file of examples/ into build/examples, and what comes after"
	@echo "make test    install, and run the whole default test suite"
	@echo "make test-cuda   the tests that need a GPU"
	@echo "make check   ruff, ruff format, mypy --strict, import-linter"
	@echo "make format  let ruff format and fix what it can"
	@echo "make smoke   render a small clip and check what it shows"
	@echo "make tiny    train the embedded tiny packs from nothing (about two hours on two cores), resumable"
	@echo "make tiny-eval  measure what the tiny packs can do, and write goan_cli/tiny/pack/README.md"
	@echo "make bench-lora  speed of the bake, against diffusers and the machine's limits"
	@echo "make bench-batch what a batch costs besides encoding, sampling and decoding"
	@echo "make bench-peers speed of sampling, against diffusers' FramePack transformer and pipeline"
	@echo "make bench-startup time from the start of a process to its first step"
	@echo "make picture README's pictures anew"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml .constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "goan needs Python 3.11 or newer: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { echo "this Python has no venv module (Debian: apt install python3-venv)"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c .constraints.txt -e '.[dev]'
# spandrel asks for torchvision, which must not be here: transformers would take its image processors, and the one of
# PyPI cannot be imported beside the CPU's torch. The tests put a stand-in in its place (tests/spandrel_alone.py).
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -c .constraints.txt spandrel
	@touch $@

demo: $(INSTALLED)
	$(BIN)/goan plan examples/quickstart.yaml
	$(BIN)/goan render examples/quickstart.yaml --preview
	@echo "the video: $(CURDIR)/examples/renders/quickstart.mp4"
	@echo "its frames: $(CURDIR)/examples/renders/quickstart.sheet.png"

examples: $(INSTALLED)
	$(BIN)/goan render examples --out build/examples --force --on-exists replace
	PATH="$(CURDIR)/$(BIN):$$PATH" examples/after.sh build/examples

test: $(INSTALLED)
	$(BIN)/python -m pytest -n auto

test-cuda: $(INSTALLED)
	$(BIN)/python -m pytest tests/cuda -rs

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

tiny: $(INSTALLED)
	$(BIN)/python -m goan_cli.tiny.train build/tiny
	$(BIN)/python -m goan_cli.tiny.examples examples
	$(BIN)/python -m goan_cli.tiny.calibration

tiny-eval: $(INSTALLED)
	$(BIN)/python -m goan_cli.tiny.evaluate

smoke: $(INSTALLED)
	$(BIN)/goan smoke

bench-lora: $(INSTALLED)
	$(BIN)/python -m tests.bench.lora

bench-batch: $(INSTALLED)
	$(BIN)/python -m tests.bench.batch

bench-peers: $(INSTALLED)
	$(BIN)/python -m tests.bench.peers

bench-startup: $(INSTALLED)
	$(BIN)/python -m tests.bench.startup

picture: $(INSTALLED)
	$(BIN)/python tests/readme_picture.py examples/terminal.svg examples/quickstart.png

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
