# `make help` says what can be made. Everything happens in the virtual environment .venv, which is made once
# and brought up to date only when the requirements change.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

PY := $(VENV)/bin/python
PIP := $(PY) -m pip --disable-pip-version-check
TORCH := $(shell grep '^torch==' constraints.txt)

# Also pins what pip uses to build the package itself.
export PIP_CONSTRAINT := constraints.txt

# An editable install points at this very folder, so a checkout that was moved or copied is set up anew.
ifneq ($(shell cat $(VENV)/.done-core 2>/dev/null),$(CURDIR))
$(shell rm -f $(VENV)/.done-core)
endif

torch_version = $(PY) -c 'from importlib.metadata import version; print(version("torch"))'

# $(call install,what,pip arguments): install, and fail if that replaced torch.
define install
@echo "setup: $(1)"
@before=$$($(torch_version)); \
	$(PIP) install --quiet $(2) || exit 1; \
	after=$$($(torch_version)); \
	if [ "$$before" != "$$after" ]; then \
		rm -f $(VENV)/.done-torch; \
		echo "setup: installing $(1) replaced torch $$before by $$after" >&2; exit 1; \
	fi
endef

# Fail unless the torch that is installed is the pinned one, whatever was installed by hand since.
define as_pinned
@found=torch==$$($(torch_version)); case "$$found" in \
	"$(TORCH)"*) ;; \
	*) echo "setup: found $$found, the pin is $(TORCH); run make clean, then make setup" >&2; exit 1 ;; \
	esac
endef

.DEFAULT_GOAL := help

.PHONY: help
help: ## Say what can be made
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s  %s\n", $$1, $$2 }' Makefile
	@echo
	@echo "ARGS adds arguments: make test ARGS='-k papers'. PYTHON chooses the interpreter (3.11 or newer)."

.PHONY: setup
setup: $(VENV)/.done-core ## Make .venv with the pinned requirements and microtome itself

.PHONY: torch
torch: $(VENV)/.done-torch ## Make .venv with the pinned torch alone

.PHONY: examine
examine: $(VENV)/.done-core ## Train and examine the reference network; writes report.html
	@$(VENV)/bin/microtome examine --report report.html $(ARGS)

.PHONY: view
view: $(VENV)/.done-core ## Open the lab in the browser, on what has been examined
	@$(VENV)/bin/microtome view $(ARGS)

.PHONY: calibrate
calibrate: $(VENV)/.done-core ## Read every instrument on networks of known answer
	@$(VENV)/bin/microtome calibrate $(ARGS)

.PHONY: test
test: $(VENV)/.done-test ## Run the tests, on as many cores as there are, at most 4
	$(as_pinned)
	$(PY) -m pytest -n auto --maxprocesses 4 $(ARGS)

.PHONY: test-slow
test-slow: $(VENV)/.done-test ## Run the slow tests
	$(as_pinned)
	$(PY) -m pytest -m slow $(ARGS)

.PHONY: check
check: $(VENV)/.done-dev ## Lint, check types and import floors
	$(PY) -m ruff check .
	$(PY) -m mypy
	$(PY) $(VENV)/bin/lint-imports --no-cache --no-logo

.PHONY: docs
docs: $(VENV)/.done-docs ## Build the documentation into docs/_build/html
	$(PY) -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

.PHONY: bench
bench: $(VENV)/.done-bench ## Measure against peer libraries
	$(PY) -m benchmarks $(ARGS)

.PHONY: clean
clean: ## Remove .venv and everything built
	rm -rf $(VENV) build dist docs/_build .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/.done-torch: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "setup: microtome needs Python 3.11 or newer; name one: make PYTHON=python3.12" >&2; exit 1; }
	@$(PY) -c '' 2>/dev/null || $(PYTHON) -m venv --clear $(VENV)
	@echo "setup: $(TORCH)"
	@$(PIP) install $(TORCH)
	@touch $@

$(VENV)/.done-core: $(VENV)/.done-torch requirements.txt pyproject.toml
	$(call install,requirements.txt,-r requirements.txt)
	$(call install,microtome,--no-deps -e .)
	@echo '$(CURDIR)' > $@

$(VENV)/.done-test: $(VENV)/.done-core requirements-test.txt
	$(call install,requirements-test.txt,-r requirements-test.txt)
	@touch $@

$(VENV)/.done-dev: $(VENV)/.done-core requirements-test.txt requirements-dev.txt
	$(call install,requirements-dev.txt,-r requirements-dev.txt)
	@touch $@

$(VENV)/.done-docs: $(VENV)/.done-core requirements-docs.txt
	$(call install,requirements-docs.txt,-r requirements-docs.txt)
	@touch $@

$(VENV)/.done-bench: $(VENV)/.done-core requirements-test.txt requirements-benchmarks.txt requirements-benchmarks-no-deps.txt
	$(call install,requirements-benchmarks.txt,-r requirements-benchmarks.txt)
	$(call install,requirements-benchmarks-no-deps.txt,--no-deps -r requirements-benchmarks-no-deps.txt)
	@touch $@
