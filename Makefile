# One environment, .venv, serves every target. What is in it is set in pyproject.toml.

PYTHON ?= python3
# what runs the zips in make verify, 3.10 too
ZIP_PYTHON ?= $(PYTHON)
ZIP_ENV := build/metadata-$(notdir $(ZIP_PYTHON))
BIN := .venv/bin
READY := .venv/.ready
TOOLS := .tools/.ready
SUDO := $(if $(filter-out 0,$(shell id -u)),sudo)

.DEFAULT_GOAL := help
.PHONY: help demo demo-chest demo-brats explain serve viewers bundle verify test test-all lock audit sbom clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\): .*## \(.*\)/  \1\t\2/p' Makefile

demo: $(READY) ## find the lesion in the sample volume, at first by the student alone; the results go to output/
	PYTHONPATH=bundle $(BIN)/python -m scripts.running run --config_file "['bundle/configs/inference.json','bundle/configs/preview.json']" \
		--input bundle/sample/TCGA_FG_6692_flair.nii.gz --output_dir output/preview --brain_cache output/cache
	PYTHONPATH=bundle $(BIN)/python -m scripts.running run --config_file bundle/configs/inference.json \
		--input bundle/sample/TCGA_FG_6692_flair.nii.gz --output_dir output --brain_cache output/cache

demo-chest: $(READY) ## find the effusion in the sample radiograph; the results go to output/chest/
	PYTHONPATH=bundle $(BIN)/python -m scripts.running run --config_file "['bundle/configs/inference.json','bundle/configs/chest.json']" \
		--input bundle/sample/NIH_61_effusion.dcm --output_dir output/chest

demo-brats: $(READY) ## find the lesion in four series of the sample's patient; the results go to output/brats/
	PYTHONPATH=bundle $(BIN)/python -m scripts.running run --config_file "['bundle/configs/inference.json','bundle/configs/brats.json']" \
		--input bundle/sample --output_dir output/brats --brain_cache output/cache

explain: $(READY) ## draw how the method works on a toy that needs no training; the picture goes to output/explain.png
	PYTHONPATH=bundle $(BIN)/python -m scripts.explain --output output/explain.png

serve: $(READY) ## show the sample study in OHIF and 3D Slicer until Ctrl-C; without Orthanc in 3D Slicer only
	$(BIN)/python apps/anomaly_detection/serve.py

viewers: ## install what OHIF and the tests need from Debian or Ubuntu: orthanc, orthanc-dicomweb, chromium, dicom3tools
	@command -v apt-get > /dev/null || \
		{ echo "There is no apt-get here: install Orthanc with its DICOMweb plugin, and Chromium, in this system's way."; exit 1; }
	$(SUDO) apt-get update
	$(SUDO) apt-get install -y --no-install-recommends orthanc orthanc-dicomweb chromium dicom3tools
	@echo "The package starts an Orthanc of its own, ports 8042 and 4242, that nothing here uses;" \
		"to stop it: systemctl disable --now orthanc"

bundle: $(READY) ## lay one zip a model in dist/, each a bundle that needs nothing beside it, in place of those before
	rm -f dist/*.zip
	PYTHONPATH=bundle $(BIN)/python -m release --output dist

# Its environment is made anew, as a package that is left in it would hide that the metadata lacks one.
verify: bundle ## check the zips as the model zoo, MONAI's tools and MONAI Label use them
	$(BIN)/python -m release.verify label dist/*.zip
	"$(ZIP_PYTHON)" -m venv --clear $(ZIP_ENV)
	$(BIN)/python -m release.requirements > build/requirements.txt
	$(BIN)/python -m release.requirements tools > build/tools.txt
	$(ZIP_ENV)/bin/python -m pip install --quiet --disable-pip-version-check -r build/requirements.txt
	$(BIN)/python -m release.verify sample dist/*.zip --python $(ZIP_ENV)/bin/python
	$(ZIP_ENV)/bin/python -m pip install --quiet --disable-pip-version-check -r build/tools.txt
	$(BIN)/python -m release.verify core dist/*.zip --python $(ZIP_ENV)/bin/python
	for version in 3.10 3.12; do $(ZIP_ENV)/bin/python -m pip install --quiet --disable-pip-version-check --dry-run \
		--ignore-installed --only-binary :all: --python-version $$version --target build/none -r build/requirements.txt \
		-r build/tools.txt && echo "Python $$version: a wheel of each package of the metadata and the tools" || exit 1; done

test: $(READY) ## lint, format, types and the tests that take seconds
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses logical --dist loadfile

test-all: test ## all of that, then the slow tests: trainings, servers and browsers
	$(BIN)/python -m pytest -m slow

lock: $(TOOLS) ## renew the locked versions and hashes in requirements/ after a change of the versions in pyproject.toml
	.tools/bin/python requirements/lock.py

audit: $(TOOLS) ## ask the package index for known advisories of the locked versions
	.tools/bin/pip-audit --no-deps --disable-pip -r requirements/locked.txt -r requirements/monailabel.txt

sbom: $(READY) $(TOOLS) ## list what is installed, with versions and licences, in CycloneDX's form in dist/
	mkdir -p dist
	.tools/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --validate \
		--output-file dist/sbom.cdx.json $(BIN)/python

clean: ## remove the environment, output/ and the tools' caches; bundle/cache and runs stay
	rm -rf .venv .tools output build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache
	find . -type d -name __pycache__ -prune -exec rm -rf {} +

PIP := $(BIN)/python -m pip install --disable-pip-version-check

LOCKED := --no-deps --require-hashes -r requirements

# Where the versions are locked, pip takes nothing but the very files whose hashes are there. torch without CUDA is taken where an
# index of this machine has it, else the registry's.
$(READY): pyproject.toml $(wildcard requirements/*.txt)
	"$(PYTHON)" -m venv .venv
ifeq ($(shell uname -sm),Linux x86_64)
	$(PIP) $(LOCKED)/cpu.txt || { echo "No torch without CUDA here; with it instead."; $(PIP) $(LOCKED)/cuda.txt; }
	$(PIP) $(LOCKED)/locked.txt
	$(PIP) --no-build-isolation $(LOCKED)/monailabel.txt
else
	$(PIP) "pip>=25.1"
	$(PIP) -e ".[app,dev]"
	$(PIP) --no-deps --group monailabel
endif
	touch $@

# These need other versions than the project, so they have an environment of their own.
$(TOOLS): requirements/tools.txt
	"$(PYTHON)" -m venv .tools
	.tools/bin/python -m pip install --disable-pip-version-check $(LOCKED)/tools.txt
	touch $@
