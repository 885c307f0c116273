# Everything a newcomer needs: `make demo`, `make test`. The environment is made on first use.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One thread a process: the demo's matrices are too small to share, and tests run several processes.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test test-slow lint format clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/.installed ## train the image demo in two processes, print the table before and after
	$(BIN)/torchrun --standalone --nproc-per-node 2 -m adrpo_scale train \
		configs/demo/image_adrpo.toml --run-dir runs/demo-image

test: $(VENV)/.installed ## at most 12 minutes on 2 cores
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations 15 -m "not slow and not gpu"

test-slow: $(VENV)/.installed ## the demo's claims, over seeds, and what else takes minutes
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations 25 -m slow

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info
