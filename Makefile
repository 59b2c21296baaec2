# Two commands for a newcomer: `make demo` and `make test`. The virtual environment is made on first use.
PY ?= python3
VENV := .venv
BIN := $(VENV)/bin
# uv does not read pip's own variable for local wheels; where it is unset this is empty and ignored.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
# Where there is neither a folder of wheels nor a GPU, torch comes from its own CPU index instead of with gigabytes of CUDA.
ifeq ($(PIP_FIND_LINKS)$(shell command -v nvidia-smi),)
export UV_TORCH_BACKEND ?= cpu
endif
# Keeps glibc from handing large blocks back to the kernel at every step; up to 1.8x on small machines.
export MALLOC_MMAP_THRESHOLD_ ?= 4294967296
export MALLOC_TRIM_THRESHOLD_ ?= 8589934592
export MALLOC_TOP_PAD_ ?= 268435456
# How much of the long tests is tried: every so many of the faults, and so many histories. All of both take more than an hour.
export FAULTS_EVERY ?= 1
export HISTORIES ?= 60

.PHONY: demo test test-slurm check docs bench mutants setup

demo: setup          ## one alignment run, end to end, with a table and a picture
	$(BIN)/python run.py

test: setup          ## the tests; further ones: `make test MARK=slow`, `fuzz` (all generated inputs), `long`; `COVER=90`: a least coverage
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(or $(JOBS),2) --dist loadfile -m "$(or $(MARK),not slow and not long and not slurm)" \
		$(if $(COVER),--cov=alignlab --cov-report=term:skip-covered --cov-fail-under=$(COVER))

mutants: setup       ## code that decides a number is changed, and a test has to notice; some of it: `make mutants NAME=...`
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install -q 'mutmut>=3.8,<4'
	OMP_NUM_THREADS=1 $(BIN)/mutmut run --max-children $(or $(JOBS),2) $(NAME)
	$(BIN)/mutmut results

test-slurm: setup    ## sweeps on a SLURM that is started for the tests, and installed first: as root, on Debian
	$(BIN)/python -m pytest -m slurm tests/slurm

check: setup         ## linter, formatter, type checker, import floors
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: setup          ## pages that are written from the configs and docstrings
	$(BIN)/python docs/options.py
	$(BIN)/python docs/house.py

bench: setup         ## the measured claims, as ratios of one run
	for script in benchmarks/*.py; do $(BIN)/python $$script || exit 1; done

setup: $(VENV)/.stamp
$(VENV)/.stamp: pyproject.toml constraints.txt
	$(PY) -m venv $(VENV)
	$(BIN)/python -m pip install -q uv
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install -q --compile-bytecode -c constraints.txt -e '.[dev]'
	touch $@
