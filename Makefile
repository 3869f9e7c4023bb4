# Everything that a fresh machine with Python and make needs: `make demo`, `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Real data for tests, where it lies beside the project; tests that need it skip with a reason otherwise.
SHARED_DATA := $(wildcard ../shared/data)
export SPARSETICKET_DATA ?= $(if $(SHARED_DATA),$(abspath $(SHARED_DATA)))
PYTEST := $(BIN)/python -m pytest
STAMP := $(VENV)/.dependencies

.PHONY: venv native demo test lint proof fuzz-native masking-cost trainer-cost shrunk-speed sparse-cpu launch-cost benchmarks aot

# Dependencies are reused while pyproject.toml and the constraints are unchanged; the project itself is always installed
# anew, as a copy built from this checkout, so that the right code is tested whichever checkout made the environment.
venv:
	@set -e; \
	wanted="$$(cat pyproject.toml constraints.txt | sha256sum | cut -d' ' -f1)"; \
	if [ "$$(cat $(STAMP) 2>/dev/null)" != "$$wanted" ]; then \
		echo "installing dependencies into $(VENV) (about 5 GB, a few minutes)"; \
		[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV); \
		$(BIN)/python -m pip install --quiet --constraint constraints.txt ".[demo,dev]" "setuptools>=77"; \
		echo "$$wanted" > $(STAMP); \
	fi; \
	$(BIN)/python -m pip uninstall --quiet --yes sparseticket; \
	rm -rf build sparseticket.egg-info; \
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --no-cache-dir .; \
	rm -rf build sparseticket.egg-info

# The sparse operator's library in this checkout, uninstalled; installing compiles it too (make venv).
native:
	PYTHONPATH=$(CURDIR) $(PYTHON) -m sparseticket.export.native.build

demo: venv
	$(BIN)/sparseticket --version
	$(BIN)/python -m sparseticket.demo

test: venv
	PYTHONPATH=$(CURDIR) $(BIN)/python -m sparseticket.export.native.build || echo "tests of the compiled library are skipped"
	$(PYTEST) -n 2
	TRITON_INTERPRET=1 $(PYTEST) -n 2 -m interpreter tests/kernels

# A run killed ten times, twice during a write, against an undisturbed one: about four minutes on two cores.
proof: venv
	$(PYTEST) -m proof -s

# Random nodes of the sparse operator, most of them broken, under AddressSanitizer and UBSan: all seeds from SEED on for
# MINUTES. A seed that fails is named; `build/fuzz-native SEED` runs it again.
SEED ?= 1
MINUTES ?= 5
fuzz-native:
	mkdir -p build
	$(CXX) -std=c++17 -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all -Wall -Wextra -pthread \
		-Iexport/native $(filter-out %/isa.cpp,$(wildcard export/native/*.cpp)) tests/export/native/fuzz.cpp -o build/fuzz-native
	build/fuzz-native $(SEED) $(MINUTES)

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# What masking costs of a training step: at least 200 paired steps; leave the machine alone meanwhile.
masking-cost: venv
	$(BIN)/python -m sparseticket.bench.masking_cost

# One IMP round of MiniLM on SST-2 beside transformers' Trainer: eight pairs of an epoch each, about half an hour on two
# cores; leave the machine alone meanwhile.
trainer-cost: venv
	$(BIN)/python -m sparseticket.bench.trainer_cost --data $(SPARSETICKET_DATA)/glue/SST-2

# BERT-base and ResNet-50 without half of their heads, neurons, channels, in fp32 and INT8: about ten minutes.
shrunk-speed: venv
	$(BIN)/python -m sparseticket.bench.shrunk_speed

# Pruned layers and a pruned BERT-base in ONNX Runtime: dense, INT8, the sparse operator; nearly two hours. DeepSparse
# takes turns where DEEPSPARSE names a Python that has it.
sparse-cpu: venv
	$(BIN)/python -m sparseticket.bench.sparse_cpu $(if $(DEEPSPARSE),--deepsparse $(DEEPSPARSE))

# Every kernel in every configuration that a table lists, or that is a default or worth measuring, for sm_80, sm_90 and
# sm_120, without a GPU: about two seconds each on one core.
aot: venv
	$(BIN)/python -m sparseticket.kernels.aot_check

# What the CPU does for a call of a kernel before a GPU has it, on a stand-in for one: half a minute.
launch-cost: venv
	$(BIN)/python -m sparseticket.bench.launch_cost

# pytest-benchmark suites, one thread: each run is kept in .benchmarks/ and compared with the one before it.
benchmarks: venv
	$(PYTEST) bench/suites -m "" --benchmark-autosave --benchmark-compare --benchmark-columns=median,iqr,rounds,ops
