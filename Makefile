# Two commands for a fresh machine: `make demo` (does contrast make a classifier converge sooner?) and `make test`.
PYTHON ?= python3
BIN := .venv/bin
RUN ?= runs/demo

.PHONY: demo test install lint check bench bench-cuda clean

demo: .venv/demo ## train the comparison on real digits and write $(RUN)/report.html
	$(BIN)/nearfar compare --data digits --out $(RUN)

test: install ## everything: lint, types, layers, tests, doctests
	$(MAKE) check

check: lint
	$(BIN)/pyright
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal  # a core a worker: more threads would wait for each other

lint:
	$(BIN)/ruff check --output-format concise .
	$(BIN)/ruff format --check .

bench: install ## the losses beside their peers; writes benchmarks/results and the README's figures; BENCH=--resume goes on
	$(BIN)/pip install -q --no-deps -r benchmarks/requirements.txt  # no torchvision, no other torch
	$(BIN)/python benchmarks/losses.py $(BENCH)
	$(BIN)/python benchmarks/losses.py --huge
	$(BIN)/python benchmarks/readme.py

bench-cuda: install ## the GPU backend beside its peers, on a machine with an NVIDIA GPU; writes benchmarks/results/cuda.*
	$(BIN)/pip install -q --no-deps -r benchmarks/requirements-cuda.txt
	$(BIN)/python benchmarks/gpu.py --tune

install: .venv/installed

PIP := $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt

.venv/torch: constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"Python 3.11 or newer is needed, this is {sys.version}"'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) torch
	touch $@

.venv/demo: .venv/torch pyproject.toml ## what a comparison needs, and no more
	$(PIP) -e '.[cli]'
	touch $@

.venv/installed: .venv/torch pyproject.toml
	$(PIP) -e '.[dev]'
	touch $@ .venv/demo

clean:
	rm -rf .venv runs build
