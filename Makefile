# Everything that is done with a checkout. `make demo` and `make test` need Python 3.10 or newer, make and git, nothing
# else: they set up .venv first (some minutes and about 4 GB, once).

.DEFAULT_GOAL := help
.PHONY: help venv demo test lint typecheck check-size train benchmark benchmark-speed benchmark-demo \
	benchmark-throughput benchmark-baselines benchmark-cost benchmark-tuning benchmark-engine benchmark-calibration \
	benchmark-volume package docs clean label-env label-server test-label benchmark-label

# The first Python that can make a virtual environment; 3.11 first, because the requirements were pinned with it.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.10 python3; do \
	$$python -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null \
	&& echo $$python && break; done)

# Exactly this version, and as a step of its own: any looser requirement makes pip take the newest build, which on Linux
# brings several GB of CUDA. Where pip finds a CPU build of this version (--find-links), it prefers that one.
TORCH ?= torch==2.13.0

BIN := .venv/bin
PYTEST_ARGS ?=
TRAINING_DATA ?= ../shared/data

# The name of the stamp changes with the files that say what is installed, so a change to them sets up again.
SET_UP := .venv/.set-up-$(shell cat requirements/*.lock pyproject.toml setup.py | cksum | cut -d ' ' -f 1)

# MONAI Label has an environment of its own: it needs an older pydicom, and modules that Python 3.13 no longer has.
LABEL := .venv-label/bin
LABEL_PYTHON ?= $(shell for python in python3.11 python3.12; do \
	$$python -c 'import ensurepip, venv' 2>/dev/null && echo $$python && break; done)
LABEL_FILES := monailabel_app/requirements.lock monailabel_app/torchvision_on_cpu.py
LABEL_SET_UP := .venv-label/.set-up-$(shell cat $(LABEL_FILES) pyproject.toml setup.py | cksum | cut -d ' ' -f 1)
STUDIES ?= studies
LABEL_HOST ?= 127.0.0.1
LABEL_PORT ?= 8000
# Nothing is fetched from a model zoo, and nothing is sent to a tracker.
LABEL_SETTINGS := MONAI_ZOO_SOURCE=local MONAI_LABEL_TRACKING_ENABLED=false

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-21s %s\n", $$1, $$2 }' Makefile

venv: $(SET_UP)  ## set up .venv (the other targets do it by themselves)

$(SET_UP):
	@test -x $(BIN)/python || test -n "$(PYTHON)" || \
		{ echo "No Python 3.10 or newer with venv and ensurepip found: install one (Debian: python3-venv)" >&2; exit 1; }
	@echo "Setting up .venv: some minutes the first time"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH)
	lock=requirements/dev-$$($(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])').lock; \
	test -f $$lock || lock=requirements/dev.lock; \
	$(BIN)/python -m pip install --quiet -r $$lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	rm -f .venv/.set-up-*
	touch $@

demo: venv  ## one labelled slice of a brain template -> the whole volume, in demo_output/
	$(BIN)/mvg demo

# pytest comes last, so that its closing line is the last one.
test: lint typecheck check-size test-label  ## all checks, then the tests with coverage (PYTEST_ARGS="-k name -x" to choose)
	$(BIN)/python -m pytest --cov --cov-report=term $(PYTEST_ARGS)

label-env: $(LABEL_SET_UP)  ## set up .venv-label, with MONAI Label (Python 3.11 or 3.12; some minutes, 3.5 GB, once)

$(LABEL_SET_UP):
	@test -x $(LABEL)/python || test -n "$(LABEL_PYTHON)" || \
		{ echo "MONAI Label needs Python 3.11 or 3.12 with venv and ensurepip: install one, or give LABEL_PYTHON" >&2; \
		  exit 1; }
	@echo "Setting up .venv-label: some minutes the first time"
	test -x $(LABEL)/python || $(LABEL_PYTHON) -m venv .venv-label
	$(LABEL)/python -m pip install --quiet $(TORCH)
	$(LABEL)/python -m pip install --quiet --no-deps -r monailabel_app/requirements.lock
	$(LABEL)/python -m pip install --quiet --no-deps --editable .
	packages=$$($(LABEL)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') && \
		cp monailabel_app/torchvision_on_cpu.py $$packages/ && \
		echo "import torchvision_on_cpu" > $$packages/torchvision_on_cpu.pth
	rm -f .venv-label/.set-up-*
	touch $@

label-server: label-env  ## MONAI Label server for the images in STUDIES=folder (LABEL_HOST, LABEL_PORT, ARGS="--conf ...")
	@echo "MONAI Label server: http://$(LABEL_HOST):$(LABEL_PORT)/ (Ctrl+C ends it)"
	@$(LABEL_SETTINGS) $(LABEL)/python -m monailabel.main start_server --app monailabel_app --studies "$(STUDIES)" \
		--host $(LABEL_HOST) --port $(LABEL_PORT) --verbose WARNING $(ARGS)

test-label:  ## the tests of the MONAI Label app, against real server processes (skipped without Python 3.11 or 3.12)
	@if test -x $(LABEL)/python || test -n "$(LABEL_PYTHON)"; then \
		$(MAKE) --no-print-directory label-env && $(LABEL)/python -m pytest tests_label -p no:cacheprovider $(LABEL_ARGS); \
	else echo "test-label SKIPPED: MONAI Label needs Python 3.11 or 3.12, and there is none"; fi

benchmark-label: label-env  ## time and memory of the MONAI Label server (a quarter of an hour)
	$(LABEL)/python benchmarks/label_server.py $(ARGS)

lint: venv  ## ruff
	$(BIN)/ruff check .

typecheck: venv  ## pyright, for the oldest and the newest supported Python
	$(BIN)/pyright --pythonversion 3.10
	$(BIN)/pyright --pythonversion 3.13

check-size: venv  ## refuse a repository that has grown too large to clone
	$(BIN)/python scripts/check_size.py

train: venv  ## train the shipped networks on ../shared/data; interrupted runs are resumed (ARGS="..." are passed on)
	$(BIN)/python -m mvg_core.training.recipe start --data $(TRAINING_DATA) --out runs/start $(ARGS)
	$(BIN)/python -m mvg_core.training.recipe middle --data $(TRAINING_DATA) --out runs/middle \
		--initial runs/start/weights.pt $(ARGS)
	$(BIN)/python -m mvg_core.training.recipe finish --data $(TRAINING_DATA) --out runs/finish \
		--initial runs/middle/weights.pt $(ARGS)
	$(BIN)/python -m mvg_core.training.maps_recipe --data $(TRAINING_DATA) --out runs/maps \
		--initial runs/finish/weights.pt
	$(BIN)/python -m mvg_core.training.reader_recipe --data $(TRAINING_DATA) --out runs/reader

benchmark: venv  ## every method on the test lists, resumable (hours); quick: ARGS="--list validation --limit 3"
	$(BIN)/python -m benchmarks.protocol all --data $(TRAINING_DATA) $(ARGS)

benchmark-baselines: venv  ## train the learned baselines, each for so many CPU minutes more: ARGS="--minutes 30"
	$(BIN)/python -m benchmarks.protocol train all --data $(TRAINING_DATA) $(ARGS)

benchmark-cost: venv  ## seconds, memory, parameters and FLOPs of our network and of others
	$(BIN)/python -m benchmarks.protocol cost

benchmark-speed: venv  ## seconds per slice and peak memory on this machine
	$(BIN)/python benchmarks/speed.py $(ARGS)

benchmark-demo: demo  ## the demo beside copying and chained demons
	$(BIN)/python benchmarks/demo_baselines.py

benchmark-throughput: venv  ## samples per second, where the time goes, memory, growth of cost
	$(BIN)/python benchmarks/throughput.py $(ARGS)

benchmark-tuning: venv  ## what test-time tuning and fine-tuning give on ../shared/data
	$(BIN)/python benchmarks/tuning.py --data $(TRAINING_DATA) $(ARGS)

benchmark-volume: venv  ## cost of slices, prompts, sizes, backends and precisions; peak memory (five minutes)
	$(BIN)/python benchmarks/volume_cost.py $(ARGS)

benchmark-engine: venv  ## what each part of the volume engine is worth on ../shared/data: Dice and seconds (an hour)
	$(BIN)/python benchmarks/engine.py --data $(TRAINING_DATA) $(ARGS)

benchmark-calibration: venv  ## fit the engine's confidence to validation subjects again, after weights or presets changed
	$(BIN)/python benchmarks/calibration.py --data $(TRAINING_DATA) $(ARGS)

package: venv  ## dist/: wheel and source distribution, with ONNX files so that the wheel predicts without PyTorch
	$(BIN)/python scripts/package.py $(ARGS)

docs: venv  ## write docs/reference/cli.md from the command line itself
	$(BIN)/python -m typer mvg_core.cli utils docs --name mvg --title "Command line" --output docs/reference/cli.md

clean:  ## remove what can be made again, except .venv
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .coverage coverage.xml htmlcov demo_output
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
