# `make` alone lists what there is to do.

PYTHON ?= python3
VENV ?= .venv
HOST ?= 127.0.0.1
PORT ?= 8000
BENCH ?= graph
SAMPLE ?= docs/samples/seven.png

# torch comes apart from the locks, as its CPU build; an empty TORCH_INDEX takes pip's own choice.
TORCH_INDEX ?= $(if $(PIP_FIND_LINKS),,https://download.pytorch.org/whl/cpu)

export ORT_DISABLE_TELEMETRY := 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1

SERVE := $(VENV)/serve
DEV := $(VENV)/dev
COMPILE = uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --quiet \
	--no-emit-index-url --excludes requirements/torch.txt pyproject.toml

.DEFAULT_GOAL := help
.PHONY: help serve test check lint bench docs lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

serve: $(SERVE)/ok ## Serve the shipped model on http://HOST:PORT (127.0.0.1:8000)
	@echo "Try it: curl --data-binary @$(SAMPLE) -H 'Content-Type: image/png' http://$(HOST):$(PORT)/predict"
	@exec $(SERVE)/bin/python -m service serve --host $(HOST) --port $(PORT) $(SERVE_ARGS)

test: $(DEV)/ok ## Run the tests (PYTEST_ARGS="-m 'not slow'")
	$(DEV)/bin/python -m pytest $(PYTEST_ARGS)

check: lint test ## Lint, format, types, import rules, container files, then the tests

lint: $(DEV)/ok
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/mypy
	$(DEV)/bin/lint-imports
	$(DEV)/bin/hadolint Dockerfile
	$(DEV)/bin/docker-compose --profile '*' config -q

bench: $(DEV)/ok ## Run one benchmark (BENCH=graph, BENCH_ARGS=)
	$(DEV)/bin/python -m benchmarks.$(BENCH) $(BENCH_ARGS)

docs: $(SERVE)/ok ## Write the service's OpenAPI description to docs/openapi.json
	@$(SERVE)/bin/python -m service openapi > docs/openapi.json.new
	@mv docs/openapi.json.new docs/openapi.json

lock: ## Resolve the dependencies anew (needs uv)
	$(COMPILE) requirements/torch-deps.in --extra dev --upgrade -o requirements/dev.lock
	$(COMPILE) requirements/torch-deps.in --extra train -c requirements/dev.lock -o requirements/train.lock
	$(COMPILE) requirements/torch-deps.in --extra torch -c requirements/dev.lock -o requirements/torch.lock
	$(COMPILE) -c requirements/dev.lock -o requirements/service.lock

clean: ## Remove the virtual environments and caches
	rm -rf $(SERVE) $(DEV) .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache dist
	find benchmarks models service tests training -name __pycache__ -type d -prune -exec rm -rf {} +

define new-venv
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	{ echo "Langevin Gate needs Python 3.11 or newer; say which with make PYTHON=/path/to/python3" >&2; exit 1; }
@echo "Installing $< into $(@D)"
@$(PYTHON) -m venv --clear $(@D)
@$(@D)/bin/python -m pip install --quiet --no-deps --require-hashes -r $<
endef

$(SERVE)/ok: requirements/service.lock
	$(new-venv)
	@touch $@

$(DEV)/ok: requirements/dev.lock requirements/torch.txt
	$(new-venv)
	@$(@D)/bin/python -m pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r requirements/torch.txt
	@touch $@
