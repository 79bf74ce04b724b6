# Everything runs in the project's own .venv, which `make install` builds and every target uses.
PYTHON ?= $(shell for p in python3.11 python3.12 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && { echo $$p; break; }; done)
BIN := .venv/bin
DEMO := runs/demo
PROFILE := quick

.PHONY: help install demo suite bench gpu-check offline-pack test test-long lint docs doctor clean

help:  ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /	/' | expand -t 14

# An environment whose Python is gone is built again.
BROKEN := $(shell $(BIN)/python -c '' 2>/dev/null || echo broken)
.PHONY: broken
broken:

install: .venv/installed  ## build .venv with all that the project needs
.venv/installed: pyproject.toml $(BROKEN)
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or 3.12 found: install one, or name it with PYTHON="; exit 1; }
	$(PYTHON) -m venv $(if $(BROKEN),--clear) .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: install  ## train a cart to drive to the middle from pixels, in minutes; writes a video and a learning curve
	$(BIN)/python -m pixel_ddpg.run task=cart obs=pixels frames=8000 noise.frames=4000 \
		eval.every=2000 eval.episodes=4 wandb=off run_dir=$(DEMO)
	$(BIN)/python -m experiments.figures runs=[$(DEMO)] out=$(DEMO)/learning_curve.png
	@echo "video:          $$(ls -t $(DEMO)/videos/*.mp4 | head -1)"
	@echo "learning curve: $(DEMO)/learning_curve.png"

suite: install  ## the experiment: PROFILE=smoke, quick (default) or paper; resumes where it was stopped
	$(BIN)/python -m experiments.suite profile=$(PROFILE)

bench: install  ## speed beside Stable-Baselines3, dm_control, torch's own path and the computed floor (DRQV2=<checkout>: that too)
	$(BIN)/python -m pip install --quiet --editable '.[dev,bench]'
	$(BIN)/python -m experiments.benchmarks drqv2=$(DRQV2)

gpu-check:  ## on a CUDA machine: its tests and speed in minutes, one JSON to send; with torch and the wheels of offline-pack
	$(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m experiments.benchmarks.gpu_check

offline-pack: install  ## a folder with the wheels that gpu-check needs beside torch (PY=3.12: of another Python)
	$(BIN)/python -m experiments.benchmarks.offline_pack python=$(PY)

test: install  ## the tests, but for those that take longest
	$(BIN)/python -m pytest -n 2

test-long: install  ## kill -9, clusters of Ray, whole commands: the rest of the tests
	$(BIN)/python -m pytest -n 2 -m long

lint: install  ## ruff (rules and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install  ## the documentation as a site, in site/
	$(BIN)/mkdocs build --strict --quiet

doctor: install  ## is everything here that training needs?
	$(BIN)/python -m pixel_ddpg.doctor

clean:  ## delete .venv and caches; runs stay
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache site *.egg-info
