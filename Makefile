# What you need: Linux, make, a C compiler and a Python >= 3.11 with venv. The rest is fetched.
#
#   make demo     run the examples and draw a picture
#   make test     format, lint, types, tests
#   make bench    measure against the peers
#   make soak     an hour of mixed faults (goes on where it was stopped), then the long tests
#   make cover    the tests with branch coverage, workers included
#   make clean    remove everything that was made (asks nothing; .venv too)
#
# PYTHON chooses the interpreter, VENV the environment: make test PYTHON=python3.13 VENV=.venv313

PYTHON ?= python3
VENV   ?= .venv

python  := $(VENV)/bin/python
install := $(python) -m pip install --quiet --disable-pip-version-check
native  := $(sort $(wildcard $(addprefix dsmfor/_native/*.,pyx pxd h)))
# A list of requirements in pyproject.toml, one a line: $(call requirements,["build-system"]["requires"])
requirements = $(python) -c 'import tomllib; \
	print(*tomllib.load(open("pyproject.toml", "rb"))$(1), sep="\n")'
extra = $(call requirements,["project"]["optional-dependencies"]["$(1)"])

.PHONY: help demo test lint bench soak cover clean FORCE
.NOTPARALLEL:
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   //p' Makefile

# The examples' own default sizes are small: all of them take well under a minute.
demo: $(VENV)/examples.stamp
	@echo "Each example computes its result twice, on one core and on all of them, and checks it."
	@for example in vec_add matmul primes pairwise_distances mandelbrot; do \
		$(python) examples/$$example.py || exit 1; \
	done
	@$(python) examples/embedding/compare.py
	@echo "The picture is in out/mandelbrot.png."

test: lint
	$(python) -m pytest

lint: $(VENV)/test.stamp
	$(python) -m ruff format --check .
	$(python) -m ruff check .
	$(python) -m mypy

bench: $(VENV)/bench.stamp
	$(python) tests/benchmarks

soak: $(VENV)/test.stamp
	$(python) tests/soak
	$(python) -m pytest -m soak -o faulthandler_timeout=3600

cover: $(VENV)/test.stamp
	$(python) -m pytest --cov --cov-report=term-missing

clean:
	rm -rf $(VENV) out build dist *.egg-info .coverage .coverage.* .hypothesis
	rm -rf .pytest_cache .mypy_cache .ruff_cache dsmfor/_native/*.c dsmfor/_native/*.so
	find dsmfor tests examples -name __pycache__ -prune -exec rm -rf {} +

# What is installed is remembered by stamps inside the environment.

$(python):
	$(PYTHON) -m venv $(VENV)

# The package itself, in place: again when the native core or the packaging changes. The build
# requirements stay in the environment, so that building again takes seconds.
$(VENV)/dsmfor.stamp: pyproject.toml setup.py $(native) $(VENV)/native.list | $(python)
	@echo "building dsmfor in $(VENV) ..."
	@rm -f dsmfor/_native/*.so
	@$(call requirements,["build-system"]["requires"]) > $(VENV)/build.txt
	@$(install) --requirement $(VENV)/build.txt
	@$(install) --no-build-isolation --editable .
	@touch $@

# Which files the native core has: a file that is gone must be noticed too.
$(VENV)/native.list: FORCE | $(python)
	@echo '$(native)' | cmp -s - $@ || echo '$(native)' > $@

$(VENV)/examples.stamp $(VENV)/test.stamp: $(VENV)/%.stamp: pyproject.toml | $(VENV)/dsmfor.stamp
	@echo "installing what '$*' needs in $(VENV) ..."
	@$(call extra,$*) > $(VENV)/$*.txt
	@$(install) --requirement $(VENV)/$*.txt
	@touch $@

# One by one: a peer that does not install is named, and the others are still measured.
$(VENV)/bench.stamp: pyproject.toml | $(VENV)/dsmfor.stamp
	@$(call extra,bench) > $(VENV)/bench.txt
	@while read -r peer; do \
		echo "installing $$peer ..."; \
		$(install) "$$peer" </dev/null || echo "*** $$peer DID NOT INSTALL: it will be missing from the figures ***"; \
	done < $(VENV)/bench.txt
	@touch $@
