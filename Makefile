# make demo    train on drawn images over four virtual sites, and show the metrics
# make test    the tests (the slow ones: make test-slow)
# make planted faults planted one at a time in a copy of the tree: which of them do the tests see? (20 minutes)
# make lint    style, types, and which room may import which
# Nothing is needed before but make and Python 3.11 or later; everything goes into .venv.

VENV := .venv
PYTHON_IN := $(VENV)/bin/python
UV := $(VENV)/bin/uv
STAMP := $(VENV)/.fed_diffmic-installed
COMPILE := --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet
export UV_HTTP_TIMEOUT ?= 300

.PHONY: demo test test-slow planted lint format setup requirements docs site wheel sbom audit clean

demo: setup
	$(VENV)/bin/fed-diffmic simulate

test: setup
	OMP_NUM_THREADS=1 $(PYTHON_IN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not slow" $(PYTEST_ARGS)

test-slow: setup
	OMP_NUM_THREADS=1 $(PYTHON_IN) -m pytest -m slow $(PYTEST_ARGS)

planted: setup
	$(PYTHON_IN) tests/planted.py $(PLANTED)

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

format: setup
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

setup: $(STAMP)

$(PYTHON_IN):
	@for candidate in $(PYTHON) python3 python3.13 python3.12 python3.11; do \
	  if "$$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then found="$$candidate"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "fed_diffmic needs Python 3.11 or later; python3 here is $$(python3 --version 2>&1). Name one: make PYTHON=/path/to/python3.12" >&2; \
	  exit 1; \
	fi; \
	"$$found" -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "$$found cannot make a virtual environment; on Debian and Ubuntu install python3-venv" >&2; exit 1; }

# uv itself is taken from the same hashed list as everything else.
$(STAMP): requirements.txt pyproject.toml | $(PYTHON_IN)
	awk '/^uv==/ {p = 1} p {print} p && !/\\$$/ {exit}' requirements.txt > $(VENV)/uv-requirements.txt
	$(PYTHON_IN) -m pip install --quiet --require-hashes --no-deps -r $(VENV)/uv-requirements.txt
	$(UV) pip install --python $(PYTHON_IN) --require-hashes -r requirements.txt
	$(UV) pip install --python $(PYTHON_IN) --no-deps --no-build-isolation -e .
	touch $@

# After a change of the dependencies in pyproject.toml: choose versions anew, keeping those that still fit. What a
# deployment installs (deploy/) is a part of the same list.
requirements:
	$(UV) pip compile pyproject.toml --all-extras $(COMPILE) -o requirements.txt
	$(UV) pip compile pyproject.toml $(COMPILE) -c requirements.txt -o deploy/requirements.txt
	$(UV) pip compile deploy/requirements-build.in $(COMPILE) -c requirements.txt -o deploy/requirements-build.txt

docs: setup
	$(PYTHON_IN) -m fed_diffmic.config.reference docs/configuration.md

# The documents as a site in build/site: open index.html there. It asks nothing of any other machine.
site: setup
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet

wheel: setup
	$(PYTHON_IN) -m build --no-isolation --wheel --outdir dist .

# What a deployment installs, for whoever must answer for it: dist/sbom.cdx.json (CycloneDX) and dist/licences.txt.
sbom: setup
	$(PYTHON_IN) deploy/sbom.py deploy/requirements.txt --out dist \
	  --version $$($(PYTHON_IN) -c 'import fed_diffmic; print(fed_diffmic.__version__)')

# Known weaknesses in it; needs the advisory service of the public package index.
audit: setup
	$(PYTHON_IN) deploy/audit.py deploy/requirements.txt

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
