# One environment, .venv, serves every target. What is in it is set in pyproject.toml.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo)

.DEFAULT_GOAL := help
.PHONY: help demo demo-chest explain serve viewers bundle test clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\): .*## \(.*\)/  \1\t\2/p' Makefile

demo: $(READY) ## find the lesion in the sample volume, at first in a second; the results go to output/
	$(BIN)/python -m monai.bundle run --config_file "['bundle/configs/inference.json','bundle/configs/preview.json']" \
		--input bundle/sample/TCGA_FG_6692_flair.nii.gz --output_dir output/preview --brain_cache output/cache
	$(BIN)/python -m monai.bundle run --config_file bundle/configs/inference.json \
		--input bundle/sample/TCGA_FG_6692_flair.nii.gz --output_dir output --brain_cache output/cache

demo-chest: $(READY) ## find the effusion in the sample radiograph; the results go to output/chest/
	$(BIN)/python -m monai.bundle run --config_file "['bundle/configs/inference.json','bundle/configs/chest.json']" \
		--input bundle/sample/NIH_61_effusion.dcm --output_dir output/chest

explain: $(READY) ## draw how the method works on a toy that needs no training; the picture goes to output/explain.png
	PYTHONPATH=bundle $(BIN)/python -m scripts.explain --output output/explain.png

serve: $(READY) ## show the sample study in OHIF and 3D Slicer until Ctrl-C; without Orthanc in 3D Slicer only
	$(BIN)/python apps/anomaly_detection/serve.py

viewers: ## install what OHIF and its tests need from Debian or Ubuntu: orthanc, orthanc-dicomweb, chromium
	@command -v apt-get > /dev/null || \
		{ echo "There is no apt-get here: install Orthanc with its DICOMweb plugin, and Chromium, in this system's way."; exit 1; }
	$(SUDO) apt-get update
	$(SUDO) apt-get install -y --no-install-recommends orthanc orthanc-dicomweb chromium
	@echo "The package starts an Orthanc of its own, ports 8042 and 4242, that nothing here uses;" \
		"to stop it: systemctl disable --now orthanc"

bundle: $(READY) ## lay one zip a model in dist/, each a bundle that needs nothing beside it
	PYTHONPATH=bundle $(BIN)/python -m release --output dist

test: $(READY) ## lint, format, types and tests
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest

clean: ## remove the environment, the results and the caches
	rm -rf .venv output dist build *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -type d -name __pycache__ -prune -exec rm -rf {} +

# torch is pinned among the dependencies, so nothing in this one command can pull another build of it
$(READY): pyproject.toml
	"$(PYTHON)" -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check "pip>=25.1"
	$(BIN)/python -m pip install -e ".[app,dev]"
	$(BIN)/python -m pip install --no-deps --group monailabel
	touch $@
