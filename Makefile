# `make` alone prints this help.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
LISTEN ?= 127.0.0.1:50051
MODELS ?= models/zoo
FUZZ_S ?= 60
FUZZ_TARGETS := frames states generation_states oip manifests graphs
SOAK_MINUTES ?= 60
SOAK_RATE ?= 1

SERVE := $(VENV)/.serve
DEV := $(VENV)/.dev

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(SERVE): pyproject.toml hatch_build.py $(wildcard proto/cellar_proto/v1/*.proto) | $(BIN)/python
	$(PIP) -e '.[client,score,server]'
	@touch $@

$(DEV): $(SERVE)
	$(PIP) torch==2.13.0
	$(PIP) -e '.[client,score,server,models,dev]'
	@touch $@

.PHONY: help demo test test-all serve native train lint check proto config-docs bench bench-short bench-native fuzz soak lock audit clean

help: ## print this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(SERVE) ## install without torch, serve the zoo, run all four modes, stream, fork, generate, score
	$(BIN)/python -m benchmarks.demo

test: $(DEV) lint ## lint and the default tests (under 10 minutes on two cores)
	$(BIN)/python -m pytest

test-all: $(DEV) lint ## all tests, the long ones too
	$(BIN)/python -m pytest -m ''

serve: $(SERVE) ## serve models/zoo on 127.0.0.1:50051 (LISTEN=HOST:PORT, MODELS=FOLDER)
	$(BIN)/cellar-server --listen $(LISTEN) --models $(MODELS)

NATIVE := build/transport
native: $(SERVE) ## build the native transport (needs CMake, a C++ compiler and libgrpc++, Debian: libgrpc++-dev)
	$(PIP) 'pybind11>=2.12'
	cmake -S server/native -B $(NATIVE) -DPython_EXECUTABLE=$(abspath $(BIN)/python)
	cmake --build $(NATIVE) --parallel 2
	cmake --install $(NATIVE) --prefix server/cellar_server/transport

train: $(DEV) ## train, export and verify every zoo model again (CELLAR_DATA names the data folder)
	for name in $$($(BIN)/cellar-models list); do $(BIN)/cellar-models train $$name && $(BIN)/cellar-models export $$name && $(BIN)/cellar-models export $$name --precision int8 || exit 1; done

lint: $(DEV) ## style, the one-way imports and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

check: lint test demo ## everything a change must pass

config-docs: $(DEV) ## write docs/configuration.md again after a change of an option
	$(BIN)/cellar-server --print-config-docs > docs/configuration.md

proto: | $(BIN)/python ## generate the stubs again after an edit of a .proto file
	$(PIP) grpcio-tools==1.76.0 'hatchling>=1.27'
	$(BIN)/python hatch_build.py

bench: $(DEV) bench-native ## measure, beside the ceilings, in one run
	$(BIN)/python -m benchmarks

SHORT := $(BIN)/python -m benchmarks --short --update --server-flags 'native=--transport native'
AIO := --server-flags 'aio=--transport aio'
bench-short: $(DEV) native bench-native ## a quarter of an hour of it, on grpc.aio, native and int8 (TRITON=VENV: beside Triton too)
	$(SHORT) --only frames messages unary chunks $(AIO) --server-flags 'int8=--transport native --precision int8'
	$(SHORT) --only bits many mixed arrivals hold beside overload memory
	$(SHORT) --only generate $(AIO)
	$(if $(TRITON),$(SHORT) --only triton --triton $(TRITON))

bench-native: ## build the load generator of `make bench` (C++; needs cmake and libgrpc++-dev)
	cmake -S benchmarks/native -B build/native
	cmake --build build/native
fuzz: $(DEV) ## coverage-guided fuzzing of all parsers (FUZZ_S=60 seconds each)
	$(PIP) 'atheris>=3.0; python_version < "3.14" and platform_system == "Linux"'
	for target in $(FUZZ_TARGETS); do $(BIN)/python -m tests.fuzz $$target --seconds $(FUZZ_S) || exit 1; done

soak: $(DEV) ## everything at once for an hour (SOAK_MINUTES=60), looking for what grows (SOAK_RATE=0.25: a quarter of the load)
	$(BIN)/python -m tests.e2e.soak --minutes $(SOAK_MINUTES) --rate $(SOAK_RATE)

lock: | $(BIN)/python ## pin what the image installs, the server, the commands and traces, in requirements.lock
	$(PIP) 'uv>=0.5'
	{ sed -n '/^#/p' requirements.lock; $(BIN)/uv pip compile pyproject.toml --extra server --extra client \
		--extra traces --generate-hashes --universal --python-version 3.11 --no-header --upgrade --quiet; } > requirements.lock.new
	mv requirements.lock.new requirements.lock

audit: | $(BIN)/python ## look up what is pinned in the database of known vulnerabilities (needs the network)
	$(PIP) 'pip-audit>=2.7'
	$(BIN)/pip-audit --strict --require-hashes -r requirements.lock

clean: ## remove the virtual environment and the generated stubs
	rm -rf $(VENV) build/native proto/cellar_proto/v1/*_pb2* proto/cellar_proto/oip/*.binpb
