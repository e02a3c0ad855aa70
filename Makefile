# The project's commands. Every target that needs the environment makes it first.

ROUNDS ?= 10
CLIENTS ?= 10
DATA ?= auto
SEED ?= 0
ARGS ?=
JOBS ?= 2

export TF_CPP_MIN_LOG_LEVEL ?= 3

SHELL := /bin/bash
PYTHON := .venv/bin/python
SPEECH ?= speech_commands
WHISPER ?= openai/whisper-tiny
STORE ?= embeddings
SAM ?= facebook/sam-vit-base
IMAGES ?= images
SAM_STORE ?= demo
# The demo's decoder is drawn at random, and needs more than the example's learning rate and ten rounds of two clients.
SAM_SETTINGS = --data $(SAM_STORE) --seed $(SEED) $(if $(filter demo,$(SAM_STORE)),--client-lr 2e-3 --clients 4 --local-epochs 4) $(ARGS)
KWS_SETTINGS = --rounds $(ROUNDS) --data $(STORE) --seed $(SEED) $(ARGS)
SETTINGS = --rounds $(ROUNDS) --clients $(CLIENTS) --data $(DATA) --seed $(SEED) $(ARGS)
INSTALLED := .venv/.installed
INSTALLED_DEPLOY := .venv-deploy/.installed
DOCS := .docs/.installed
PEERS := flower fedjax

.DEFAULT_GOAL := help
.PHONY: help setup train train-compressed train-fewest train-cluster embeddings train-kws train-kws-compressed train-kws-fewest train-kws-centralized embeddings-sam train-sam train-sam-compressed train-sam-fewest tensorboard notebooks run-notebooks test test-fast lint docs settings tables results results-quick bench bench-rd bench-coders bench-peers requirements setup-deploy lock-deploy deploy-demo clean

help: ## Lists the commands.
	@echo "ROUNDS=, CLIENTS=, DATA= and SEED= set the training. ARGS= takes any other setting, such as ARGS=\"--client-lr 0.1\"."
	@sed -n 's/^\([a-z-]*\):[^#]*## /  \1\t/p' $(firstword $(MAKEFILE_LIST)) | expand -t 26

setup: $(INSTALLED) ## Creates the environment .venv from requirements.txt.

$(INSTALLED): requirements.txt scripts/setup.sh
	@bash scripts/setup.sh
	@touch $@

train: setup ## Trains on digits by federated averaging, without encoding.
	@$(PYTHON) -m tff_kit train emnist $(SETTINGS)

train-compressed: setup ## Trains on digits with the tutorial's 8-bit encoding in both directions.
	@$(PYTHON) -m tff_kit train emnist --broadcast tensor_encoding:8 --mean tensor_encoding:8 $(SETTINGS)

train-fewest: setup ## Trains on digits with encoders that choose for themselves and take the fewest bits.
	@$(PYTHON) -m tff_kit train emnist --compress light $(SETTINGS)

train-cluster: setup ## Trains as train-compressed, on two workers of this machine.
	@bash scripts/train_cluster.sh $(PYTHON) emnist --broadcast tensor_encoding:8 --mean tensor_encoding:8 $(SETTINGS)

embeddings: setup ## Makes the embeddings for keyword spotting: SPEECH=folder of wavs, WHISPER=id or folder, STORE=output folder.
	@$(PYTHON) -m tff_kit embed --speech $(SPEECH) --whisper $(WHISPER) --out $(STORE) $(ARGS)

train-kws: setup ## Trains keyword spotting on STORE=folder or STORE=demo, without encoding.
	@$(PYTHON) -m tff_kit train kws $(KWS_SETTINGS)

train-kws-compressed: setup ## Trains keyword spotting with 8-bit encoding in both directions.
	@$(PYTHON) -m tff_kit train kws --broadcast tensor_encoding:8 --mean tensor_encoding:8 $(KWS_SETTINGS)

train-kws-fewest: setup ## Trains keyword spotting with encoders that choose for themselves and take the fewest bits.
	@$(PYTHON) -m tff_kit train kws --compress light $(KWS_SETTINGS)

train-kws-centralized: setup ## Trains keyword spotting without federation, for comparison.
	@$(PYTHON) -m tff_kit train kws-centralized --data $(STORE) --seed $(SEED) $(ARGS)

embeddings-sam: setup ## Makes the embeddings for segmentation: IMAGES=folder, SAM=id, folder or tiny, SAM_STORE=output folder.
	@$(PYTHON) -m tff_kit embed sam --images $(IMAGES) --sam $(SAM) --out $(SAM_STORE) $(ARGS)

train-sam: setup ## Trains SAM's mask decoder on SAM_STORE=folder or SAM_STORE=demo, without encoding.
	@$(PYTHON) -m tff_kit train sam --rounds $(ROUNDS) $(SAM_SETTINGS)

train-sam-compressed: setup ## Trains SAM's mask decoder with 8-bit encoding in both directions.
	@$(PYTHON) -m tff_kit train sam --rounds $(ROUNDS) --broadcast uniform:8 --mean uniform:8 $(SAM_SETTINGS)

train-sam-fewest: setup ## Trains SAM's mask decoder with encoders that choose for themselves and take the fewest bits.
	@$(PYTHON) -m tff_kit train sam --rounds $(ROUNDS) --compress light $(SAM_SETTINGS)

tensorboard: setup ## Shows the curves of all runs in logs/ in TensorBoard.
	@.venv/bin/tensorboard --logdir logs

notebooks: setup ## Opens the notebooks in Jupyter Lab.
	@.venv/bin/jupyter lab notebooks

run-notebooks: setup ## Executes the notebooks at full size and keeps their outputs. TFF_KIT_* variables name the data.
	@$(PYTHON) scripts/run_notebooks.py notebooks/*.ipynb

test: setup setup-deploy ## Runs all tests, in JOBS=2 processes; more take 3 GB each.
	@$(PYTHON) -m pytest -n $(JOBS) --dist worksteal --durations 10

test-fast: setup ## Runs the tests that need neither much time nor data nor programs of their own.
	@$(PYTHON) -m pytest -n $(JOBS) --dist worksteal -m "not (slow or data or process)"

lint: setup ## Checks style, types and the documents' tables.
	@$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check . && $(PYTHON) -m mypy && $(PYTHON) -m benchmarks.tables --check

docs: setup $(DOCS) ## Builds the documents as a site in site/. Broken links and undocumented public names are errors.
	@$(PYTHON) scripts/settings_page.py --check
	@.docs/bin/python scripts/check_docstrings.py
	@NO_MKDOCS_2_WARNING=1 .docs/bin/mkdocs build --strict --quiet
	@echo "The site is in site/index.html. Its search needs a server: python3 -m http.server --directory site"

$(DOCS): docs/requirements.txt | $(INSTALLED)
	@rm -rf .docs
	@$(PYTHON) -m venv .docs
	@.docs/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: -r $<
	@touch $@

settings: setup ## Writes docs/settings.md from the settings' docstrings.
	@$(PYTHON) scripts/settings_page.py

tables: setup ## Writes the documents' tables from the files in results/.
	@$(PYTHON) -m benchmarks.tables $(ARGS)

results: setup setup-deploy $(PEERS:%=.peers/%/.installed) .peers/coders/.installed ## Runs everything behind the tables again. It takes hours and resumes. DATA=, SPEECH=, WHISPER= name the data.
	@$(PYTHON) -m benchmarks --emnist $(if $(filter auto,$(DATA)),mnist-by-writer,$(DATA)) --speech $(SPEECH) --whisper $(WHISPER) $(ARGS)
	@$(PYTHON) -m benchmarks.tables

results-quick: setup setup-deploy ## Tries every benchmark on little data, in minutes, into logs/results-quick/.
	@$(PYTHON) -m benchmarks --quick $(ARGS)

bench: setup ## Measures seconds a round and memory on DATA=folder.
	@$(PYTHON) -m benchmarks.round_time emnist --data $(DATA)

bench-rd: setup ## Measures bits and error of every encoder on DATA=folder and STORE=folder (1-s window).
	@$(PYTHON) -m benchmarks.rate_distortion --emnist $(DATA) --kws $(STORE) $(ARGS)

bench-coders: setup .peers/coders/.installed ## Measures bits and error beside NNCodec, SZ3, ZFP and zstd on DATA=folder and STORE=folder.
	@$(PYTHON) -m benchmarks.coders --emnist $(DATA) --kws $(STORE) $(ARGS)

bench-peers: setup $(PEERS:%=.peers/%/.installed) ## Measures seconds a round beside Flower, FedJAX and others on DATA=folder and STORE=folder.
	@$(PYTHON) -m benchmarks.peers --emnist $(DATA) --kws $(STORE) $(ARGS)

.peers/%/.installed: benchmarks/peers/%.txt | $(INSTALLED)
	@rm -rf .peers/$*
	@$(PYTHON) -m venv .peers/$*
	@.peers/$*/bin/python -m pip install --quiet --disable-pip-version-check -r $<
	@$(if $(filter coders,$*),.peers/coders/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation nncodec==2.1.3)
	@touch $@

requirements: ## Resolves pyproject.toml into requirements.txt again. Needs uv.
	@bash scripts/lock.sh

setup-deploy: $(INSTALLED_DEPLOY) ## Creates the environment .venv-deploy of real clients from requirements-deploy.txt.

$(INSTALLED_DEPLOY): requirements-deploy.txt scripts/setup_deploy.sh
	@bash scripts/setup_deploy.sh
	@touch $@

lock-deploy: ## Resolves requirements-deploy.in again into requirements-deploy.txt.
	@bash scripts/lock_deploy.sh

deploy-demo: setup-deploy ## Trains with a server and two real clients on this machine, TLS and authentication on; ends by itself.
	@bash scripts/deploy_demo.sh .venv-deploy/bin/python

clean: ## Removes the environments and the site.
	@rm -rf .venv .venv-deploy .peers .docs site
