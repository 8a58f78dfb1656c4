# Two commands: `make train` watches a policy learn, `make test` runs the whole suite.
# Both create .venv if it is missing and install what they need.

PYTHON ?= python3
CONFIG ?= configs/arithmetic.yaml
ARGS ?=
BIN := .venv/bin

.PHONY: train test check format bench clean

train: .venv/run
	$(BIN)/grpo-jax train $(CONFIG) $(ARGS)

test: .venv/dev
	$(BIN)/pytest $(ARGS)

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q --doctest-modules grpo_jax

format: .venv/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: .venv/run
	$(BIN)/python experiments/benchmark/bench.py $(ARGS)

clean:
	rm -rf .venv outputs build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/run: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -e .
	touch $@

.venv/dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -e ".[dev]"
	touch $@ .venv/run
