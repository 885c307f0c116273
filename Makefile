# Everything a newcomer needs: `make demo`, `make test`. The environment is made on first use.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One thread a process: the demo's matrices are too small to share, and tests run several processes.
export OMP_NUM_THREADS ?= 1

.PHONY: demo demo-hacking test test-slow test-other-cpu docs lint format clean

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

TRAIN := $(BIN)/torchrun --standalone --nproc-per-node 2 -m adrpo_scale train
demo: $(VENV)/.installed ## train the dice demo in two processes, print the table before and after
	$(TRAIN) configs/demo/dice_adrpo.toml --run-dir runs/demo-dice

demo-hacking: $(VENV)/.installed ## the image demo with a moving reference: a reward that can be hacked
	$(TRAIN) configs/demo/image_adrpo.toml --run-dir runs/demo-hacking --set iterations=40 \
		--set reference.kind=ema --set reference.decay=0.8 --set algorithm.scale=group_std \
		--set optimizer.learning_rate=1e-2 --set optimizer.updates=1 --set optimizer.draws_per_sample=4

test: $(VENV)/.installed ## see tests/README.md for the suites and their times
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations 15 -m "not slow and not gpu"

# The matrix products and reductions of an old processor: what is compared over
# engines and processes must not hang on the roundings of this one.
OTHER := tests/engines/test_small_models.py tests/engines/test_updates.py \
	tests/training/test_text_training.py tests/training/test_training.py tests/run/test_old_runs.py
test-other-cpu: $(VENV)/.installed ## about a minute
	MKL_CBWR=COMPATIBLE ATEN_CPU_CAPABILITY=default $(BIN)/python -m pytest -n 2 --dist loadfile \
		-m "not slow and not gpu" $(OTHER) -k "unused or does_not_use or tied or resumes or \
		(plain_loop and all-2) or (samples and world_size)"

test-slow: $(VENV)/.installed ## the demo's claims, over seeds, and what else takes minutes
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations 25 -m slow

docs: $(VENV)/.installed ## docs/_build/html/index.html; a warning is an error
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --jobs auto docs docs/_build/html

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build *.egg-info
