# Needs Python 3.11 or 3.12 and nothing else: every target sets up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS ?= test
OUT ?= runs/lr_sweep

.DEFAULT_GOAL := help
.PHONY: help setup sweep test lint bench reproduce docs clean

help:  ## Lists the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/.installed-$(EXTRAS)  ## Makes .venv with driftlab and its tools (EXTRAS=test,bench,...)

$(VENV)/.installed-%: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 13) else \
	  "driftlab needs Python 3.11 or 3.12, this is " + sys.version.split()[0] + \
	  "; use make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$*]"
	@touch $@

sweep: setup  ## The main job: 64 learning rates x 4 seeds on digits (OUT=folder)
	$(BIN)/python -m experiments.lr_sweep --out=$(OUT)

test: setup  ## All tests
	$(BIN)/python -m pytest -n 2 --dist=worksteal

lint: setup  ## Format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

bench:  ## driftlab beside its peers, in one run (an hour and a half); results go to runs/
	@$(MAKE) setup EXTRAS=test,bench
	mkdir -p runs
	$(BIN)/python -m benchmarks.sweep --out=runs/sweep.md
	$(BIN)/python -m benchmarks.convolution
	$(BIN)/python -m benchmarks.curvature --out=runs/curvature.md
	$(BIN)/python -m benchmarks.curvature --torch_threads=2 --sections=eigenvalues,trace \
	  --out=runs/curvature_torch_threads.md
	$(BIN)/python -m benchmarks.flows --out=runs/flows.md
	$(BIN)/python -m benchmarks.games --out=runs/games.md
	$(BIN)/python -m benchmarks.embeddings --out=runs/embeddings.md
	$(BIN)/python -m benchmarks.fluctuation_dissipation --out=runs/fluctuation_dissipation.md
	JAX_PLATFORMS=cpu $(BIN)/python -m benchmarks.central_flows --out=runs/central_flows_benchmark.md

reproduce: setup  ## Published results on real data, claim against measurement (three hours); into runs/
	$(BIN)/python -m experiments.edge_of_stability --out=runs/edge_of_stability
	$(BIN)/python -m experiments.spectrum --out=runs/spectrum
	$(BIN)/python -m experiments.catapult --out=runs/catapult
	$(BIN)/python -m experiments.flow_vs_descent --out=runs/flow_vs_descent
	$(BIN)/python -m experiments.convergence_order --out=runs/convergence_order
	$(BIN)/python -m experiments.optimizer_flows --out=runs/optimizer_flows
	$(BIN)/python -m experiments.principal_flow --out=runs/principal_flow
	$(BIN)/python -m experiments.momentum_flows --out=runs/momentum_flows
	$(BIN)/python -m experiments.stochastic_flows --out=runs/stochastic_flows
	$(BIN)/python -m experiments.central_flows --out=runs/central_flows
	$(BIN)/python -m experiments.dal --out=runs/dal
	$(BIN)/python -m experiments.dirac_gan --out=runs/dirac_gan
	$(BIN)/python -m experiments.bilinear_quadratic_games --out=runs/bilinear_quadratic_games
	$(BIN)/python -m experiments.gan_drift --config=configs/gan_drift_small.py --out=runs/gan_drift
	$(BIN)/python -m experiments.fluctuation_dissipation --out=runs/fluctuation_dissipation
	$(BIN)/python -m experiments.fluctuation_dissipation \
	  --config=configs/fluctuation_dissipation_digits.py --out=runs/fluctuation_dissipation_digits
	$(BIN)/python -m experiments.fluctuation_dissipation \
	  --config=configs/fluctuation_dissipation_schedule.py --out=runs/fluctuation_dissipation_schedule
	$(BIN)/python -m experiments.gradient_directions --config=configs/gradient_directions_small.py \
	  --out=runs/gradient_directions
	$(BIN)/python -m experiments.overparameterized --out=runs/overparameterized
	$(BIN)/python -m experiments.overparameterized --config=configs/overparameterized_labels.py \
	  --out=runs/overparameterized_labels
	$(BIN)/python -m experiments.linear_alignment --out=runs/linear_alignment
	$(BIN)/python -m experiments.a2grad --out=runs/a2grad
	$(BIN)/python -m experiments.wordnet_poincare --config=configs/wordnet_poincare_small.py \
	  --out=runs/wordnet_poincare

docs:  ## Builds the site into site/
	@$(MAKE) setup EXTRAS=test,docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:  ## Removes .venv and what was built
	rm -rf $(VENV) site dist build
