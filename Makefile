# Two commands on a machine with only Python 3.11 (or newer) and make:
#
#     make demo     set up .venv and run a real job on this machine's cores
#     make test     set up .venv and run everything that CI runs
#
# uv is used where it is on PATH, pip otherwise. PYTHON=/path/to/python picks the interpreter, VENV=dir the place.

VENV   ?= .venv
BIN    := $(VENV)/bin
PYTEST ?=
# Tests mostly wait, so that four at once fit two cores; more would measure the machine, not zfarm.
SHARE  := -n 4 --dist loadfile --no-loadscope-reorder

.PHONY: help demo test again soak chaos fuzz lint format pins clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -6
	@echo "    also: make soak, make chaos, make fuzz, make lint, make format, make pins, make clean"

demo: $(VENV)/.run
	$(BIN)/python examples/census.py

test: lint
	$(BIN)/python -m pytest $(SHARE) $(PYTEST) || { [ $$? = 1 ] && $(MAKE) --no-print-directory again; }

# What failed (1: all were tried, and some did) is tried once more, with the machine to itself; what fails then, too, has failed.
# Both are printed.
again: $(VENV)/.dev
	$(BIN)/python -m pytest --last-failed --last-failed-no-failures none $(PYTEST)

# A hundred thousand fresh seeds of the simulator: four to nine hours of one core, shared by all there are. What was
# ended goes on where it was, while what is simulated stays the same: .soak/ says what is done.
# Those that fail are named; `python -m tests.simulation --seed N --trace` tells the story of one.
soak: $(VENV)/.dev
	$(BIN)/python -m tests.simulation.soak --count 100000

# An hour of kill -9, SIGSTOP and a bad network on a real farm.
chaos: $(VENV)/.dev
	$(BIN)/python -m tests.integration.chaos --seconds 3600

# Ten minutes of coverage-guided fuzzing of the decoders and of the broker behind them.
fuzz: $(VENV)/.dev
	@PYTHON='$(PYTHON)' .ci/setup '$(VENV)' '.[fuzz]'
	$(BIN)/python -m tests.fuzz --seconds 600

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports --no-logo

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The newest versions that fit pyproject.toml, tried by `make test` in the same breath, become the pins.
pins:
	.ci/pins
	$(MAKE) test

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(VENV)/.run: pyproject.toml constraints.txt .ci/setup
	@PYTHON='$(PYTHON)' .ci/setup '$(VENV)' .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt .ci/setup
	@PYTHON='$(PYTHON)' .ci/setup '$(VENV)' '.[dev]'
	@touch $(VENV)/.run $@
