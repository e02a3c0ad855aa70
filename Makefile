# The project's commands. Every target that needs the environment makes it first.

ROUNDS ?= 10
CLIENTS ?= 10
DATA ?= auto
SEED ?= 0
ARGS ?=

export TF_CPP_MIN_LOG_LEVEL ?= 3

SHELL := /bin/bash
PYTHON := .venv/bin/python
SPEECH ?= speech_commands
WHISPER ?= openai/whisper-tiny
STORE ?= embeddings
KWS_SETTINGS = --rounds $(ROUNDS) --data $(STORE) --seed $(SEED) $(ARGS)
SETTINGS = --rounds $(ROUNDS) --clients $(CLIENTS) --data $(DATA) --seed $(SEED) $(ARGS)
INSTALLED := .venv/.installed
INSTALLED_DEPLOY := .venv-deploy/.installed
PEERS := flower fedjax

.DEFAULT_GOAL := help
.PHONY: help setup train train-compressed train-cluster embeddings train-kws train-kws-compressed train-kws-centralized tensorboard notebooks run-notebooks test lint bench bench-rd bench-peers requirements setup-deploy lock-deploy deploy-demo clean

help: ## Lists all targets.
	@echo "ROUNDS=, CLIENTS=, DATA= and SEED= pass through to training, ARGS= takes any other setting."
	@sed -n 's/^\([a-z-]*\):[^#]*## /  \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 22

setup: $(INSTALLED) ## Makes .venv from requirements.txt.

$(INSTALLED): requirements.txt scripts/setup.sh
	@bash scripts/setup.sh
	@touch $@

train: setup ## Trains EMNIST by federated averaging, nothing compressed.
	@$(PYTHON) -m tff_kit train emnist $(SETTINGS)

train-compressed: setup ## Trains EMNIST with the tutorial's 8-bit encoding both ways.
	@$(PYTHON) -m tff_kit train emnist --broadcast tensor_encoding:8 --mean tensor_encoding:8 $(SETTINGS)

train-cluster: setup ## Trains as train-compressed does, on two workers of this machine.
	@bash scripts/train_cluster.sh $(PYTHON) emnist --broadcast tensor_encoding:8 --mean tensor_encoding:8 $(SETTINGS)

embeddings: setup ## Makes embeddings of SPEECH=folder by WHISPER=id or folder into STORE=folder.
	@$(PYTHON) -m tff_kit embed --speech $(SPEECH) --whisper $(WHISPER) --out $(STORE) $(ARGS)

train-kws: setup ## Trains keyword spotting on STORE=folder (or demo), nothing compressed.
	@$(PYTHON) -m tff_kit train kws $(KWS_SETTINGS)

train-kws-compressed: setup ## Trains keyword spotting with 8-bit encoding both ways.
	@$(PYTHON) -m tff_kit train kws --broadcast tensor_encoding:8 --mean tensor_encoding:8 $(KWS_SETTINGS)

train-kws-centralized: setup ## Trains keyword spotting on STORE=folder without federation.
	@$(PYTHON) -m tff_kit train kws-centralized --data $(STORE) --seed $(SEED) $(ARGS)

tensorboard: setup ## Shows the curves of all runs in logs/.
	@.venv/bin/tensorboard --logdir logs

notebooks: setup ## Opens the notebooks in Jupyter Lab.
	@.venv/bin/jupyter lab notebooks

run-notebooks: setup ## Executes the notebooks at full size and keeps their outputs; data by TFF_KIT_* variables.
	@$(PYTHON) scripts/run_notebooks.py notebooks/*.ipynb

test: setup setup-deploy ## Runs all tests.
	@$(PYTHON) -m pytest -n 2 --dist loadfile

lint: setup ## Checks style and types.
	@$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check . && $(PYTHON) -m mypy

bench: setup ## Measures round time and memory, in pairs.
	@$(PYTHON) -m benchmarks.round_time emnist --data $(DATA)

bench-rd: setup ## Measures bits against error of every encoder; DATA= and STORE= as for training, 1-s windows.
	@$(PYTHON) -m benchmarks.rate_distortion --emnist $(DATA) --kws $(STORE) $(ARGS)

bench-peers: setup $(PEERS:%=.peers/%/.installed) ## Measures round time beside Flower, FedJAX and others; DATA= and STORE= as for training.
	@$(PYTHON) -m benchmarks.peers --emnist $(DATA) --kws $(STORE) $(ARGS)

.peers/%/.installed: benchmarks/peers/%.txt | $(INSTALLED)
	@rm -rf .peers/$*
	@$(PYTHON) -m venv .peers/$*
	@.peers/$*/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@touch $@

requirements: ## Resolves pyproject.toml anew into requirements.txt; needs uv.
	@bash scripts/lock.sh

setup-deploy: $(INSTALLED_DEPLOY) ## Makes .venv-deploy from requirements-deploy.txt, for real clients.

$(INSTALLED_DEPLOY): requirements-deploy.txt scripts/setup_deploy.sh
	@bash scripts/setup_deploy.sh
	@touch $@

lock-deploy: ## Resolves requirements-deploy.in anew into requirements-deploy.txt.
	@bash scripts/lock_deploy.sh

deploy-demo: setup-deploy ## Trains with a server and two real clients on this machine, TLS and authentication on; ends by itself.
	@bash scripts/deploy_demo.sh .venv-deploy/bin/python

clean: ## Removes the environments.
	@rm -rf .venv .venv-deploy .peers
