# moesim: `make demo` and `make test` need nothing but Python >= 3.11 and a package index.
# Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
VENV   ?= .venv
WORKERS ?= 2
# `calibration` brings torch; without it (make test EXTRAS=dev) the tests that need it skip.
EXTRAS  ?= dev,calibration

# Bytecode is kept even where the shell says otherwise: the tests start hundreds of processes, and
# compiling moesim's sources takes each half a second.
unexport PYTHONDONTWRITEBYTECODE

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
PACKAGE := pyproject.toml constraints.txt

.PHONY: demo test test-rest test-all lint compile docs clean help

help:
	@echo "make demo      simulate scenarios/demo.yaml and write out/demo/report.html"
	@echo "make test      the default tests"
	@echo "make test-all  the same, then the slow ones and those that need Chromium"
	@echo "make lint      ruff, mypy --strict, import direction"
	@echo "make compile   compile the engine into its cache, as the first run would"
	@echo "make docs      links and examples of README.md and docs/"
	@echo "make clean     remove .venv and everything that is generated"

demo: $(VENV)/.runtime
	@echo "The first run compiles the simulator, for 10 to 30 seconds; later ones start at once."
	$(BIN)/moesim run scenarios/demo.yaml --report out/demo/report.html --out out/demo
	@echo
	@echo "The report: $(CURDIR)/out/demo/report.html (open it in a browser)"

# worksteal: neighbours in a file stay with one worker, which makes their fixtures once.
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test: $(VENV)/.dev
	$(PYTEST)

# pytest's status 5 says that no test carries these marks, which is no failure.
test-rest: $(VENV)/.dev
	@status=0; $(PYTEST) -m "slow or browser" || status=$$?; \
	if [ $$status -eq 5 ]; then echo "no test is marked slow or browser"; status=0; fi; \
	exit $$status

test-all:
	$(MAKE) test
	$(MAKE) test-rest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

compile: $(VENV)/.dev
	$(BIN)/moesim run scenarios/demo.yaml --set workload.requests=50 --json > /dev/null

docs: $(VENV)/.dev
	$(BIN)/python -m pytest tests/docs -m "not browser"

clean:
	rm -rf $(VENV) out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -rf .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "moesim needs Python 3.11 or later; try: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "Making a virtual environment in $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)

# The stamps are older than $(PACKAGE) when something has to be installed again.
$(VENV)/.runtime: $(PACKAGE) | $(BIN)/python
	@echo "Installing moesim and what it needs (once; a minute or two) ..."
	@$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(PACKAGE) | $(BIN)/python
	@echo "Installing moesim with its development tools, '$(EXTRAS)' (once; some minutes) ..."
	@$(PIP) -e '.[$(EXTRAS)]'
	@touch $@ $(VENV)/.runtime
