# Every target sets up what it needs in .venv, and does nothing there when that is up to date. `make` lists the targets.

.DEFAULT_GOAL := help
EXPERIMENTS := $(sort $(basename $(notdir $(wildcard configs/experiment/*.yaml))))
.PHONY: help test test-slow test-cluster check lint types format reproduce costs results report benchmark torture clean $(EXPERIMENTS)

SCALE ?= laptop
BENCHMARK ?= instrument
ARGS =
ifeq ($(origin PYTHON),undefined)
# looked for when .venv is made, and then once only
PYTHON = $(eval PYTHON := $$(shell for name in python3.13 python3.12 python3.11 python3; do \
	$$$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$$$name && break; done))$(PYTHON)
endif

VENV := .venv
RUN := $(VENV)/bin/python -m
INSTALL := $(RUN) pip install --quiet --disable-pip-version-check -c constraints.txt
CREATED := $(VENV)/.created
INSTALLED := $(VENV)/.installed
WITH_TOOLS := $(VENV)/.installed-with-tools
WITH_ENGINES := $(VENV)/.installed-with-engines

help: ## this list
	@echo 'usage: make TARGET [SCALE=smoke|laptop|paper] [ARGS="..."]'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-22s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo 'experiments: train what is missing at SCALE (default laptop), then draw; ARGS="sweep.workers=2 seed=0" are settings'
	@for name in $(filter-out quickstart,$(EXPERIMENTS)); do \
		printf '  %-22s ' $$name; sed -n 's/^title: *//p' configs/experiment/$$name.yaml; done

quickstart: ## a first figure in minutes: trains a small grid on built-in digits and draws it, with no download of data

test: $(WITH_TOOLS) ## the tests; ARGS="tests/theory -x" are pytest's
	OMP_NUM_THREADS=1 $(RUN) pytest -n auto $(ARGS)

test-slow: $(WITH_TOOLS) ## the tests that take longer
	OMP_NUM_THREADS=1 $(RUN) pytest -n auto -m 'slow and not cluster' $(ARGS)

test-cluster: $(WITH_ENGINES) ## sweeps on a real Slurm and a real Ray, of which nodes are killed; skips, saying so, what is not there
	OMP_NUM_THREADS=1 $(RUN) pytest -m cluster tests/clusters $(ARGS)

check: lint types test ## lint, types and tests

lint: $(WITH_TOOLS) ## style and format, changing nothing
	$(RUN) ruff check
	$(RUN) ruff format --check

types: $(WITH_TOOLS) ## the type checker
	$(RUN) mypy

format: $(WITH_TOOLS) ## formats the code and mends what can be mended
	$(RUN) ruff check --fix
	$(RUN) ruff format

reproduce: $(EXPERIMENTS) ## all experiments, trained and drawn, at SCALE

costs: $(INSTALLED) ## what each experiment would take at SCALE, estimated from a few updates of each kind of run
	@for name in $(EXPERIMENTS); do \
		echo "$$name:"; $(RUN) depthlab cost experiment=$$name scale=$(SCALE) $(ARGS) || exit 1; \
	done

results: $(INSTALLED) ## draws all figures, tables and claims again from their stored readings, without training
	@root="$${DEPTHLAB_RESULTS:-results}"; \
	for readings in "$$root"/*/readings.csv.gz; do \
		[ -f "$$readings" ] || { echo "there are no readings in $$root/*; train first: make reproduce" >&2; exit 1; }; \
		name=$$(basename "$$(dirname "$$readings")"); \
		echo "$(RUN) depthlab figure $$name --redraw"; $(RUN) depthlab figure $$name --redraw || exit 1; \
	done

report: $(INSTALLED) ## one HTML page of all figures, tables and claims, in the results; the README's claims with it
	$(RUN) depthlab report --claims README.md $(ARGS)

benchmark: $(INSTALLED) ## what watching costs, or BENCHMARK=passes|step|data|sweep|start|depth|limit; ARGS="--rounds 3" are its options
	OMP_NUM_THREADS=1 $(VENV)/bin/python benchmarks/$(BENCHMARK).py --output $(ARGS)
	$(VENV)/bin/python benchmarks/headlines.py

torture: $(INSTALLED) ## kills a sweep 100 times and compares its readings with an undisturbed one's; ARGS="--kills 20 --seed 1"
	OMP_NUM_THREADS=1 $(VENV)/bin/python tests/torture/harness.py $(ARGS)

clean: ## removes .venv, builds and caches; runs, figures and data sets stay
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find src experiments tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(EXPERIMENTS): $(INSTALLED)
	$(RUN) depthlab train experiment=$@ scale=$(SCALE) $(ARGS)
	$(RUN) depthlab figure $@ scale=$(SCALE) $(ARGS)

$(CREATED):
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo 'depthlab needs Python 3.11 or newer, and found none ($(or $(PYTHON),python3.11, python3.12, python3.13, python3)).' >&2; \
		echo 'Install one, or say where it is: make PYTHON=/path/to/python3' >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo '$(PYTHON) cannot make virtual environments: its module venv or ensurepip is missing.' >&2; \
		echo 'On Debian and Ubuntu install the package python3-venv, or name another Python: make PYTHON=/path/to/python3' >&2; \
		exit 1; }
	"$(PYTHON)" -m venv --clear $(VENV)
	@touch $@

$(INSTALLED): $(CREATED) pyproject.toml constraints.txt
	@echo 'installing depthlab and what it needs into $(VENV); torch is large, the first time takes a while'
	$(INSTALL) -e .
	@touch $@

$(WITH_TOOLS): $(CREATED) pyproject.toml constraints.txt
	@echo 'installing depthlab, what it needs and the development tools into $(VENV); torch is large, the first time takes a while'
	$(INSTALL) -e '.[dev]'
	@touch $(INSTALLED) $@

$(WITH_ENGINES): $(WITH_TOOLS)
	@echo 'installing the engines for sweeps into $(VENV)'
	@for extra in joblib slurm ray; do \
		$(INSTALL) -e ".[$$extra]" || echo "the extra $$extra cannot be installed here; its tests are skipped" >&2; \
	done
	@touch $@
