# Everything a person types. Each target sets up what it needs, once; afterwards all of them work offline.
#
#   make demo        train a small multimodal model on handwritten digits and let it answer
#   make demo-omni   another one that sees digits and hears telephone keys (five minutes)
#   make test        the tests (five minutes at most)
#   make test-all    the slow tests too, and the tests against a built wheel
#   make check       lint, format, types, docstrings, import edges
#   make zoo         every encoder with every language model, and docs/zoo.md (five minutes)
#   make bench       the benchmarks, and a page of them: ratios, bounds, goals (25 minutes; BENCH_ARGS=--quick: five; on a GPU: gpu.py)
#   make docs        the documentation as a site, in docs/_build/html
#   make test-lowest the tests with the lowest versions pyproject.toml allows
#
# PYTHON=python3.12        which Python makes the virtual environment
# SYSTEM_SITE_PACKAGES=1   use a torch (and whatever else fits) that this Python already has
# TORCH_PIP_ARGS=...       further arguments of pip for torch alone, such as another package index

PYTHON ?= python3
SYSTEM_SITE_PACKAGES ?=
TORCH ?= torch>=2.11,<2.14
TORCH_PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
TESTS := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest
WORKERS ?= 2

.PHONY: bench demo demo-omni test test-all test-slow test-wheel test-lowest zoo check docs format clean

demo: $(VENV)/.demo
	$(BIN)/python -m cornstarch.cli.demo examples/digits.yaml --run.overwrite true $(DEMO_ARGS)

demo-omni: $(VENV)/.demo
	$(BIN)/python -m cornstarch.cli.demo_omni examples/omni.yaml --run.overwrite true $(DEMO_ARGS)

bench: $(VENV)/.demo
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m benchmarks.run $(BENCH_ARGS)

test: $(VENV)/.check
	$(TESTS) -n $(WORKERS) -m "not slow" tests

test-slow: $(VENV)/.check
	$(TESTS) -n $(WORKERS) -m slow tests

test-all: test test-slow test-wheel

zoo: $(VENV)/.check
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $(BIN)/python -m tests.zoo.run --workers $(WORKERS)

check: $(VENV)/.check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pydoclint --quiet cornstarch
	PYTHONPATH=. $(BIN)/lint-imports

docs: $(VENV)/.check
	HF_HUB_OFFLINE=1 $(BIN)/python -m sphinx -b html -W --keep-going docs docs/_build/html

format: $(VENV)/.check
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The environment: torch first, so that no other package chooses its build, then the rest.
$(VENV)/.torch:
	$(PYTHON) -m venv $(if $(SYSTEM_SITE_PACKAGES),--system-site-packages) $(VENV)
	$(PIP) install $(TORCH_PIP_ARGS) "$(TORCH)"
	touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	$(PIP) install -e ".[train]"
	touch $@

$(VENV)/.check: $(VENV)/.demo pyproject.toml
	$(PIP) install -e ".[check]"
	touch $@

# The wheel is tested where the sources are not: a folder that holds it and its dependencies, and a copy of the tests.
test-wheel: $(VENV)/.check
	rm -rf build dist .venv-wheel
	$(BIN)/python -m build --wheel --no-isolation --outdir dist .
	$(BIN)/python -m venv --without-pip .venv-wheel/env
	$(PIP) --python .venv-wheel/env/bin/python install --no-deps --no-index dist/*.whl
	$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" > .venv-wheel/dependencies.pth
	cp .venv-wheel/dependencies.pth $$(.venv-wheel/env/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/
	cp -r tests benchmarks examples docs tools README.md Makefile pyproject.toml .venv-wheel/
	cd .venv-wheel && OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 env/bin/python -m pytest -n $(WORKERS) -m "not slow" tests
	rm -rf .venv-wheel

test-lowest:
	test -f .venv-lowest/.ready || $(PYTHON) -m venv .venv-lowest
	test -f .venv-lowest/.ready || .venv-lowest/bin/python -m pip install $(TORCH_PIP_ARGS) \
		$$($(PYTHON) tools/lowest_versions.py $(LOWEST_EXCEPT))
	test -f .venv-lowest/.ready || .venv-lowest/bin/python -m pip install --no-deps -e .
	touch .venv-lowest/.ready
	OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 .venv-lowest/bin/python -m pytest -n $(WORKERS) -m "not slow" tests

clean:
	rm -rf $(VENV) .venv-wheel .venv-lowest build dist docs/_build docs/config.md .mypy_cache .ruff_cache .hypothesis
