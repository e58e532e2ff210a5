# Everything here needs only make, Python >= 3.11 and pip; what else is needed goes into .venv.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo demo-parsl demo-ray test chaos contracts fuzz gpu audit lowest lint format bench soak clean
.DELETE_ON_ERROR:

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: $(VENV)/.demo ## run the demo: the same workflow on bare Dask and with a store
	$(BIN)/python examples/run_demo.py

demo-parsl: $(VENV)/.demo ## the same for Parsl
	$(BIN)/python examples/parsl_trajectory.py --compare

demo-ray: $(VENV)/.demo ## the same for Ray
	$(BIN)/python examples/ray_trajectory.py --compare

test: $(VENV)/.dev ## run the tests
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder $(ARGS)

contracts: $(VENV)/.dev ## run all of every engine's contract on every store, or on those in ARGS: hours
	$(BIN)/python tests/contracts.py $(ARGS)

fuzz: $(VENV)/.dev ## what reads others' bytes, ten minutes each, side by side
	FUZZ_SECONDS=$(or $(SECONDS),600) $(BIN)/python -m pytest tests/test_fuzz.py -rP $(ARGS)

gpu: $(VENV)/.dev ## values on a GPU, bare and with a store: needs one, and PyTorch for it; CuPy, JAX and Numba where they are
	$(BIN)/python -m pytest -n 0 tests/on_gpu.py $(ARGS)

audit: $(VENV)/.dev ## known vulnerabilities of what is installed, of the package index or what ARGS names; fails where it knows nothing
	$(BIN)/python -m pip install --quiet pip-audit
	$(BIN)/python -m pip freeze --exclude-editable > $(VENV)/.audited
	$(BIN)/python -m pip_audit --requirement $(VENV)/.audited --disable-pip --no-deps --strict --progress-spinner off $(ARGS)

lowest: $(VENV)/.dev ## the tests of core and connectors with the lowest versions that pyproject.toml allows
	$(BIN)/python -m nox --session lowest

chaos: $(VENV)/.dev ## break everything that can break, about half an hour; needs root, iproute2 and nftables
	PYTHONPATH=tests $(BIN)/python -m chaos --results docs/faults-report.json --report docs/faults-report.md $(ARGS)

lint: $(VENV)/.dev ## style, types, import rules, spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

format: $(VENV)/.dev ## let ruff format and repair what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.bench ## measure against bare engines and ProxyStore
	$(BIN)/python -m benchmarks $(ARGS)

soak: $(VENV)/.bench ## 100 000 small and 5 000 large tasks on each engine: nothing grows, nothing is left
	$(BIN)/python -m benchmarks.soak $(ARGS)

clean: ## remove .venv, caches and builds
	rm -rf $(VENV) .nox build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Systems that split ensurepip off Python still have their own pip: it fills the environment. A new pip then
# installs the hundreds of packages of `dev` in four fifths of the time that the one of Python 3.11 takes.
$(BIN)/python:
	$(PYTHON) -m venv --clear $(VENV) || { \
	    $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	    $(PYTHON) -m pip --python $(BIN)/python install --quiet pip; }
	$(PIP) --upgrade pip

# One stamp for each extra: a second `make` starts at once, a changed pyproject.toml installs again.
$(VENV)/.dev $(VENV)/.demo $(VENV)/.bench: $(VENV)/.%: pyproject.toml | $(BIN)/python
	$(PIP) --editable ".[$*]"
	@touch $@
