# Each target is a line or two; `make help` lists them. On a fresh Debian machine `make demo` and
# `make test` do everything, set-up included.

SHELL := /bin/bash
PYTHON := .venv/bin/python
# The lab makes network namespaces and runs libvirtd: that takes root.
ROOT := $(shell [ "$$(id -u)" = 0 ] || echo sudo --preserve-env=PATH)

.DEFAULT_GOAL := help
.PHONY: help setup demo guide test lint types test-unit test-packages test-lab test-boot bench screenshot storm fleet-storm lab-up lab-down openapi lock wheel packages clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: ## Install what the tests and the lab need (Debian packages, .venv)
	@tests/setup.sh

demo: setup ## The main job, for real: a scan crossed by a live migration, discarded and repeated
	@$(ROOT) $(PYTHON) -m tests.lab.demo

guide: setup ## deploy/README.md's first guarded scan, followed word for word on a clean lab
	@$(ROOT) $(PYTHON) -m tests.lab.guide

test: setup lint types test-unit test-packages test-lab ## Everything: checks, unit and API tests, packages, the lab, the storm

lint: setup ## ruff: rules and format; vermin: the guest's part is for Python 3.9
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	.venv/bin/vermin --quiet --no-tips --violations --target=3.9- guest_client

# 3.10 is the oldest that mypy knows.
types: setup ## mypy, strict
	$(PYTHON) -m mypy
	$(PYTHON) -m mypy --python-version 3.10 --package guest_client

test-unit: setup ## Unit and API tests
	$(ROOT) $(PYTHON) -m pytest -n 4 tests/unit tests/api tests/ui tests/fleet

test-packages: setup ## The packages: built, installed into a Debian, used, purged
	@tests/setup.sh deploy/packages/packages.txt
	$(ROOT) $(PYTHON) -m pytest tests/packages

test-lab: setup ## Real live migrations in the lab, and the storm
	$(ROOT) $(PYTHON) -m pytest tests/lab -m "not boot and not fleetstorm"

test-boot: setup ## The packages in guests that boot with systemd (ten minutes)
	@tests/setup.sh deploy/packages/packages.txt
	$(ROOT) $(PYTHON) -m pytest tests/lab -m boot -s

bench: setup ## What it costs, against baselines in the same run (tests/bench)
	@$(ROOT) $(PYTHON) -m tests.bench

screenshot: setup ## deploy/ui.png: the status page during a real migration
	$(ROOT) env UI_SCREENSHOT=deploy/ui.png $(PYTHON) -m pytest tests/lab/test_ui.py

storm: setup ## The migration storm alone
	$(ROOT) $(PYTHON) -m pytest tests/lab -m storm -s

fleet-storm: setup ## Five minutes of migrations while the fleet's cluster fails
	$(ROOT) $(PYTHON) -m pytest tests/lab/test_fleet.py -m fleetstorm -s

lab-up: setup ## Bring up a lab to play with (see `.venv/bin/python -m tests.lab --help`)
	$(ROOT) $(PYTHON) -m tests.lab up

lab-down: setup ## Take the lab down
	$(ROOT) $(PYTHON) -m tests.lab down

openapi: setup ## Write openapi/openapi.yaml anew
	$(PYTHON) -m openapi.export

lock: setup ## Write requirements/*.txt anew (needs uv)
	uv pip compile -q --no-emit-index-url --no-header --generate-hashes --python-platform linux --python-version 3.9 --group guest -o requirements/guest.txt
	uv pip compile -q --no-emit-index-url --no-header --generate-hashes --universal --python-version 3.11 --extra host --extra fleet pyproject.toml -o requirements/host.txt
	uv pip compile -q --no-emit-index-url --no-header --generate-hashes --universal --python-version 3.11 --extra host --extra fleet --extra dev pyproject.toml -o requirements/dev.txt

wheel: setup ## Build dist/*.whl
	$(PYTHON) -m build --wheel

packages: setup ## Build dist/*.deb (host, guest) and dist/guest-client.pyz
	@tests/setup.sh deploy/packages/packages.txt
	$(PYTHON) deploy/packages/build.py

clean: ## Remove what was built (the lab's cache too)
	rm -rf .cache build dist
