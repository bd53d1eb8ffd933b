# Two commands for people, and what they share with CI.
PYTHON ?= python3
NEWEST ?= $(or $(shell command -v python3.13),$(PYTHON))  # that the classifiers name
BIN := .venv/bin
LIGHT := .venv-light
LOWEST := .venv-lowest
PIP_OPTIONS ?=  # of yours, such as --extra-index-url for torch without CUDA
LIGHT_TESTS := tests/core tests/around

.PHONY: boards loop demo test notebook docs lint test-light test-lowest test-slow test-service wheel alone test-wheel \
    environments audit image clean

demo: .venv/.train          ## train, export, evaluate and publish on a bundled sample, into runs/demo, or runs/NAME with SAMPLE=NAME
	$(BIN)/python train.py $(if $(SAMPLE),--sample $(SAMPLE)) --out runs/$(or $(SAMPLE),demo) --overwrite

test: .venv/.dev            ## the quick suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

notebook: .venv/.train      ## the walk-through, run anew, with its outputs
	OMP_NUM_THREADS=1 $(BIN)/python notebooks/build.py

lint: .venv/.dev            ## style, form and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy bascule datamodules evaluation models pipeline privacy serve service train.py examples/*.py

test-light: $(LIGHT)/.base  ## the serving tests on the newest Python, where only the base dependencies are installed
	OMP_NUM_THREADS=1 $(LIGHT)/bin/python -m pytest -q -n 2 --dist loadfile $(LIGHT_TESTS)

test-lowest:                ## the quick suite with the lowest versions that pyproject.toml admits
	rm -rf $(LOWEST) && $(PYTHON) -m venv $(LOWEST) && mkdir -p build
	$(PYTHON) tests/lowest_versions.py > build/lowest.txt
	$(LOWEST)/bin/python -m pip install -q --disable-pip-version-check -c build/lowest.txt -e ".[dev]"
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -q -n 2 --dist loadfile

wheel: alone                ## the built distribution, and what it does alone in a fresh environment and an empty folder
	$(MAKE) test-wheel

alone: .venv/.dev
	rm -rf build/wheel build/alone && $(BIN)/python -m pip wheel -q --no-deps -w build/wheel .
	$(PYTHON) -m venv build/alone
	build/alone/bin/python -m pip install -q --disable-pip-version-check build/wheel/*.whl mypy pandas-stubs

test-wheel: .venv/.dev
	OMP_NUM_THREADS=1 BASCULE_BIN=build/alone/bin $(BIN)/python -m pytest -q -m "" -n 2 --dist loadfile -k "not form and not docs" \
	    tests/wheel_contents.py tests/service/test_pages_run.py tests/service/test_loop_guide.py

test-slow: .venv/.dev       ## the suites that need minutes; files without any are not read
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m slow -n 2 --dist loadfile $$(grep -rl "mark.slow" tests --include="test_*.py")

test-service: .venv/.dev    ## what a review of the service asks, against running services; test-wheel follows the guide of the loop
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m service -n 2 --dist loadfile --ignore tests/service/test_loop_guide.py \
	    tests/service tests/test_examples.py

environments: .venv/.dev    ## what CI makes beside style and types: each writes into the folder, so that they follow one another
	$(MAKE) $(LIGHT)/.base
	$(MAKE) alone

audit:                      ## known holes of what the image installs; needs PyPI's advisories
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install -q --disable-pip-version-check pip-audit
	build/audit/bin/python -m pip_audit --strict --disable-pip --require-hashes -r requirements/lock.txt

image:                      ## the image, on a base that is named by its digest: BASE=python:3.11-slim@sha256:...
	@case "$(BASE)" in *@sha256:*) ;; *) echo "BASE is '$(BASE)'; expected NAME@sha256:DIGEST, as docker buildx imagetools" \
	    "inspect python:3.11-slim tells it" >&2; exit 2;; esac
	docker build --pull --build-arg "BASE=$(BASE)" -t $(or $(IMAGE),bascule) .

docs: .venv/.dev            ## the pages of docs/ and of the docstrings, into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q

loop: .venv/.train          ## a simulated shop, served, logged, retrained and judged for eight weeks
	OMP_NUM_THREADS=1 $(BIN)/python tests/benchmarks/loop.py

boards: .venv/.train        ## the public boards of docs/boards.md: DATA=folder [ONLY="names"] [SEEDS="0 1 2"] [OPTIONS=--quick]
	$(BIN)/python -m tests.benchmarks.boards $(if $(DATA),--data $(DATA)) $(if $(ONLY),--only $(ONLY)) \
	    $(if $(SEEDS),--seeds $(SEEDS)) $(OPTIONS)

clean:
	rm -rf .venv $(LIGHT) $(LOWEST) build .mypy_cache .pytest_cache .ruff_cache .hypothesis

.venv/.train: pyproject.toml requirements/*.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_OPTIONS) -e .
	touch $@

.venv/.dev: pyproject.toml requirements/*.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check $(PIP_OPTIONS) -e ".[dev]"
	touch $@ .venv/.train

$(LIGHT)/.base: pyproject.toml requirements/serve.txt Makefile
	$(NEWEST) -m venv $(LIGHT)
	$(LIGHT)/bin/python -m pip install -q --disable-pip-version-check -r requirements/serve.txt \
	    pytest pytest-timeout pytest-xdist hypothesis
	$(LIGHT)/bin/python -m pip install -q --disable-pip-version-check --no-deps -e .
	touch $@
