# Two commands: `make demo` and `make test`. They build .venv themselves. PYTHON=python3.12 chooses another Python.
PYTHON ?= python3
PORT ?= 8000
BIN = .venv/bin
# Modules are compiled once for all processes, into .venv, whatever the environment says: torch and fastai take seconds each time.
export PYTHONPYCACHEPREFIX = $(CURDIR)/.venv/pycache
export PYTHONDONTWRITEBYTECODE =
# Memory freed by one step is kept for the next, which spares page faults.
MEMORY = MALLOC_MMAP_THRESHOLD_=2147483648 MALLOC_TRIM_THRESHOLD_=8589934592 MALLOC_TOP_PAD_=268435456
QUIET = PYTHONWARNINGS=ignore::FutureWarning $(MEMORY)

.PHONY: help demo test lab docs serve notebooks readme clean

help:
	@echo "make demo       a camera that hangs at an angle: what should training look like? A table and demo.png (minutes)"
	@echo "make test       exported modules, notebooks and tests"
	@echo "make lab        the notebooks in JupyterLab"
	@echo "make docs       the site, in _docs"
	@echo "make serve      the site in a browser on this computer; PORT=8000 chooses the port"
	@echo "make notebooks  execute all notebooks, keep their outputs, export, write README.md"

.venv/.demo: settings.ini setup.py tools/install.py
	@$(PYTHON) tools/install.py

.venv/.dev: settings.ini setup.py tools/install.py
	@$(PYTHON) tools/install.py dev

demo: .venv/.demo
	@echo "Upright digits with labels, a camera that hangs at an angle, forty labels from it. What should training look like? Minutes."
	@$(QUIET) $(BIN)/ia-demo

test: .venv/.dev
	@echo "1 of 3: do the exported modules, the README and the clean state of the notebooks agree?"
	@$(BIN)/python tools/check_export.py
	@echo "2 of 3: every notebook, from a clean kernel"
	@$(QUIET) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -s tests/test_notebooks.py
	@echo "3 of 3: tests/"
	@$(QUIET) $(BIN)/python -m pytest -q -n 2 --dist loadfile --durations=8 tests --ignore=tests/test_notebooks.py

lab: .venv/.dev
	@$(BIN)/jupyter lab nbs

notebooks: .venv/.dev
	@$(QUIET) $(BIN)/python tools/run_notebooks.py

readme: .venv/.dev
	@$(BIN)/python tools/readme.py

docs: .venv/.dev
	@$(QUIET) $(BIN)/python tools/docs.py

_docs/index.html: .venv/.dev _quarto.yml tools/docs.py $(wildcard nbs/*.* nbs/*/*.* influence_aug/*.py influence_aug/*/*.py)
	@$(QUIET) $(BIN)/python tools/docs.py

serve: _docs/index.html
	@$(BIN)/python tools/docs.py serve $(PORT)

clean:
	rm -rf .venv _proc _docs _shots build dist *.egg-info demo.png demo.safetensors
