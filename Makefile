# `make demo` and `make test` set up .venv by themselves; they need Python 3.10 or newer and the package index.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
STAMP := $(VENV)/.installed
# pip compiles nothing: a module is compiled when it is first imported, and kept. Most of what is installed never is.
export PYTHONDONTWRITEBYTECODE :=
PIP := $(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check
# On Linux the package index may serve a CUDA build of torch, of several GB. `make TORCH_INDEX=<URL> ...` takes it from
# another index, such as PyTorch's own of CPU builds.
TORCH_INDEX ?=

.PHONY: demo test soak check format bench clean

demo: $(READY)
	$(BIN)/zofo demo

test: $(STAMP)
	$(BIN)/python -m pytest -m "not soak" -n 2 --dist worksteal

soak: $(STAMP)
	$(BIN)/python -m pytest -m "soak or promise" -s --promises

# mkdocs without --quiet, under which --strict counts no warnings.
check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/site

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)
	$(BIN)/python benchmarks/step.py

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build src/*.egg-info

$(READY): pyproject.toml constraints-cpu.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "zofo needs Python 3.10 or newer; name one with: make PYTHON=python3.12 ..."; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { rm -rf $(VENV); $(PYTHON) -m venv $(VENV); } || { rm -rf $(VENV); echo "$(PYTHON) cannot make a virtual environment; on Debian: apt-get install python3-venv"; exit 1; }
	$(if $(TORCH_INDEX),$(PIP) $$(grep '^torch==' constraints-cpu.txt) --index-url $(TORCH_INDEX))
	$(PIP) -c constraints-cpu.txt -e '.[demo,quantized]'
	touch $(READY)

$(STAMP): $(READY)
	$(PIP) -c constraints-cpu.txt -e '.[dev]'
	touch $(STAMP)
