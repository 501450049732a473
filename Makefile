# Targets are listed by `make help`. Everything runs in .venv, built from pyproject.toml and
# constraints.txt by the first Python from 3.11 to 3.13 that has venv and pip.

RECIPE ?= validated
ifeq ($(RECIPE),smoke)
SEEDS ?= 0
else
SEEDS ?= range(3000,3005)
endif
# In the order of docs/protocol.md.
EXPERIMENTS := rates table1 swapped caffe sharing train_size_rates train_size fashion_rates fashion \
               paper_level_steps paper_level adam_rates adam
EXPERIMENT ?=
OUTPUTS ?= outputs
ARGS ?=
RUN_ARGS ?=

PYTHON := .venv/bin/python
PIP := $(PYTHON) -m pip --disable-pip-version-check
SETTINGS := recipe=$(RECIPE) outputs=$(OUTPUTS) $(ARGS)
SUITABLE := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))

# Make takes any variable without a word: SEED=3 would do the usual seeds.
KNOWN := SEEDS RECIPE OUTPUTS ARGS RUN_ARGS EXPERIMENT
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(origin $(name))),$(name)))
UNKNOWN := $(firstword $(filter-out $(KNOWN),$(GIVEN)))
ifneq ($(and $(UNKNOWN),$(filter-out help clean,$(MAKECMDGOALS))),)
NEAREST := import difflib, sys; print(*difflib.get_close_matches(sys.argv[1].upper(), sys.argv[2:], 1))
MEANT := $(shell python3 -c '$(NEAREST)' '$(UNKNOWN)' $(KNOWN) 2>/dev/null)
$(error unknown variable $(UNKNOWN).$(if $(MEANT), Did you mean $(MEANT)?) There are $(KNOWN))
endif

.DEFAULT_GOAL := help
.PHONY: help reproduce report bench evidence zoo survey publish docs test-fast test test-all fuzz check clean

# A line that begins with "##@ " is the heading of the targets below it.
help: ## list the targets
	@awk -F ':.*## ' '/^##@ / {printf "\n%s\n", substr($$0, 5)} \
	    /^[a-z_-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile
	@echo
	@echo "Settings: SEEDS=$(SEEDS) RECIPE=$(RECIPE) OUTPUTS=$(OUTPUTS) ARGS='KEY=VALUE ...'"
	@echo "ARGS choose recipe., data., model.; RUN_ARGS how it is run (threads=, device=);"
	@echo "EXPERIMENT=NAME is one experiment of docs/protocol.md, for make evidence."

##@ The paper

reproduce: .venv/ready ## train what is missing, then print and plot Tables 1 and 2
	$(PYTHON) -m experiments.train -m 'seed=$(SEEDS)' arm=strided,free $(SETTINGS) $(RUN_ARGS)
	$(PYTHON) -m experiments.train -m 'seed=$(SEEDS)' model=unit_stride weights=copy $(SETTINGS) $(RUN_ARGS)
	$(PYTHON) -m experiments.report $(SETTINGS)

report: .venv/ready ## tables and plots of what has been run
	$(PYTHON) -m experiments.report $(SETTINGS)

evidence: .venv/ready ## runs of docs/protocol.md that are not published yet; what all say (hours)
	@failed=; for name in $(or $(EXPERIMENT),$(EXPERIMENTS)); do \
	    echo "experiment=$$name"; \
	    $(PYTHON) -m experiments.train experiment=$$name published=outputs/reference/$$name \
	        outputs=$(OUTPUTS) $(RUN_ARGS) || { code=$$?; test $$code != 130 || exit $$code; failed=1; }; \
	done; \
	$(PYTHON) -m experiments.evidence outputs=$(OUTPUTS) && test -z "$$failed"

##@ Measurements

bench: .venv/ready ## time training steps, a conversion, and first layers beside their twins
	$(PYTHON) -m experiments.benchmark $(SETTINGS) $(RUN_ARGS)
	$(PYTHON) -m experiments.conversion_benchmark outputs=$(OUTPUTS) $(RUN_ARGS)

zoo: .venv/ready ## convert, verify and time LeNet, All-CNN-C, ResNets, torchvision's networks
	$(PYTHON) -m experiments.zoo outputs=$(OUTPUTS) $(RUN_ARGS)

survey: .venv/survey ## convert a network of every family of timm, torchvision, … (hours)
	$(PYTHON) -m experiments.survey outputs=$(OUTPUTS) $(RUN_ARGS)

publish: .venv/ready ## what was timed, derived and drawn into outputs/reference; tables of documents
	mkdir -p outputs/reference
	$(PYTHON) -m experiments.evidence outputs=$(OUTPUTS) documents=[README.md,docs/findings.md]
	for figure in verdicts:. rates:rates differences:table1 sharing:sharing rho:sharing rho_fine_tune:sharing \
	              train_size:train_size; do \
	    find $(OUTPUTS)/report -maxdepth 1 -name "$${figure%%:*}.png" -exec cp {} outputs/reference/$${figure##*:}/ \; ; \
	done
	for name in benchmark conversion stems zoo survey survey_kinds survey_models table2 feature_maps degrees_of_freedom copied_weights; do \
	    find $(OUTPUTS)/report -maxdepth 1 -name "$$name.*" -exec cp {} outputs/reference/ \; ; \
	done
	test ! -e $(OUTPUTS)/report/differences.csv || cp $(OUTPUTS)/report/differences.csv outputs/reference/
	test ! -e $(OUTPUTS)/benchmark.json || cp $(OUTPUTS)/benchmark.json outputs/reference/
	test ! -e $(OUTPUTS)/conversion.json || cp $(OUTPUTS)/conversion.json outputs/reference/
	test ! -d $(OUTPUTS)/figures || cp $(OUTPUTS)/figures/*.png outputs/reference/

docs: .venv/docs ## the site, from docs/ and docstrings, into outputs/site; warnings are errors
	NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --quiet
	@echo "the site is in outputs/site; begin with index.html"

##@ Development

test-fast: .venv/ready ## test the library while you work (under a CPU-minute)
	$(PYTHON) -m pytest -n 0 -x --hypothesis-profile=fast tests/library tests/by_layer

test: .venv/ready ## run the tests (five CPU-minutes)
	$(PYTHON) -m pytest

test-all: .venv/ready ## and whole commands, clusters, signals, simulations, random networks (long)
	$(PYTHON) -m pytest -m '' --hypothesis-profile=all
	$(MAKE) fuzz

fuzz: .venv/ready ## test 2,000 random networks
	$(PYTHON) -m pytest tests/library/test_graphs.py --hypothesis-profile=fuzz

check: .venv/ready ## lint, formatting, types, which module may import which
	$(PYTHON) -m ruff check
	$(PYTHON) -m ruff format --check
	$(PYTHON) -m mypy
	.venv/bin/lint-imports --no-logo

clean: ## remove .venv and caches; results stay
	rm -rf .venv .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .hypothesis build *.egg-info

.venv/ready: pyproject.toml constraints.txt hashes.txt
	@found=; \
	for python in python3 python3.13 python3.12 python3.11 python; do \
	    if $$python -c '$(SUITABLE)' 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	    echo "No Python from 3.11 to 3.13 with venv and pip: install one (Debian, Ubuntu: apt install python3-venv)." >&2; \
	    exit 1; \
	fi; \
	echo "building .venv with $$found; this takes some minutes the first time ..."; \
	$$found -m venv --clear .venv
	@# pip and setuptools first: what builds the others is pinned too.
	$(PIP) --quiet install --constraint constraints.txt pip setuptools
	$(PIP) install --no-build-isolation --require-hashes --requirement hashes.txt
	PYTHONWARNINGS=ignore $(PIP) --quiet install --no-build-isolation --editable '.[dev]' --constraint constraints.txt
	@# The package installed is the library alone; this finds the commands from any folder.
	@echo '$(CURDIR)' > "$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/experiments.pth"
	@touch $@

.venv/survey: .venv/ready
	@echo "adding the packages of make survey to .venv ..."
	PYTHONWARNINGS=ignore $(PIP) --quiet install --no-build-isolation --editable '.[survey]' --constraint constraints.txt
	@touch $@

.venv/docs: .venv/ready
	@echo "adding the packages of make docs to .venv ..."
	PYTHONWARNINGS=ignore $(PIP) --quiet install --no-build-isolation --editable '.[docs]' --constraint constraints.txt
	@touch $@
