# Works with GNU make 3.81 (macOS) and pip; needs no GPU.
PYTHON ?= python3
MODEL ?= smollm2-135m

BIN := .venv/bin
export OMP_WAIT_POLICY ?= PASSIVE
PIP := $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check
USER_STAMP := .venv/.installed
APP_STAMP := .venv/.installed-app
DEV_STAMP := .venv/.installed-dev
INPUTS := pyproject.toml constraints.txt

.PHONY: help install demo app test check docs notebooks mutants clean

help:
	@echo "make demo      install, then label the heads of $(MODEL): writes heads.json and heads.html"
	@echo "make app       install, then the dashboard in the browser; LABELS=heads.json shows other labels than the bundled ones"
	@echo "make test      install, then every check and every test"
	@echo "make install   .venv with the package, its tests and its tools"
	@echo "make check     format, lint, types, layers, dead code and the fast tests"
	@echo "make docs      the docs site in site/; open site/index.html"
	@echo "make notebooks runs those of reports/notebooks and renews their output"
	@echo "make mutants   mutation testing over the modules that measure"
	@echo "make clean     remove what was made here; the cache of models stays"
	@echo "Another interpreter: make PYTHON=python3.12 ..."

install: $(DEV_STAMP)

demo: $(USER_STAMP)
	@$(BIN)/workbench label --model $(MODEL) --out heads.json

app: $(APP_STAMP)
	@WORKBENCH_APP_LABELS="$(LABELS)" WORKBENCH_APP_MODEL="$(if $(filter file,$(origin MODEL)),,$(MODEL))" $(BIN)/streamlit run app/main.py

test: $(DEV_STAMP)
	@scripts/check

check: $(DEV_STAMP)
	@scripts/check --fast

docs: $(DEV_STAMP)
	@scripts/check --docs

notebooks: $(DEV_STAMP)
	@$(BIN)/python scripts/notebooks

mutants: $(DEV_STAMP)
	@$(BIN)/python scripts/mutants

clean:
	rm -rf .venv build dist site *.egg-info heads.json heads.html .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "$(PYTHON) is missing or older than Python 3.11; name a newer one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || \
		{ rm -rf .venv; echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }

$(USER_STAMP): $(INPUTS) | $(BIN)/python
	@echo "installing into .venv (a few minutes the first time)"
	@$(PIP) install 'pip>=23'
	@$(PIP) install --constraint constraints.txt --editable .
	@touch $@

$(APP_STAMP): $(INPUTS) | $(USER_STAMP)
	@$(PIP) install --constraint constraints.txt --editable '.[app]'
	@touch $@

$(DEV_STAMP): $(INPUTS) | $(BIN)/python
	@echo "installing into .venv (a few minutes the first time)"
	@$(PIP) install 'pip>=23'
	@$(PIP) install --constraint constraints.txt --editable '.[dev]'
	@$(PIP) install --constraint constraints.txt --no-deps kvpress # its loader is tested; the transformers that it asks for is older
	@touch $(USER_STAMP) $(APP_STAMP) $@
