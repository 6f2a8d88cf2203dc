# Every target sets itself up: a virtual environment in .venv, made anew when pyproject.toml changes.
# The one requirement is Python 3.10 or newer with venv; choose another one with `make PYTHON=python3.12 ...`.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: install demo test lint format bench bench-kd bench-tiled bench-mutations clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(INSTALLED)

# Settings that learn in minutes on two cores: small tiles at native resolution, an optimizer step per batch of 8,
# no mosaic. They are for this demonstration; real training takes kd's defaults. The plain student gets an epoch more,
# for the time in which the distilled one's first weights are computed; five such pairs: benchmarks/evidence/demo.yaml.
DEMO_TRAIN := --data demo/tiles/data.yaml --imgsz 192 --batch 8 --set nbs=8 --set optimizer=AdamW \
	--set lr0=0.003 --set cos_lr=true --set warmup_epochs=1 --set warmup_bias_lr=0 --set mosaic=0 --set scale=0.2 \
	--set workers=0
DEMO_LABELS := demo/raw/DTLD_Labels_v2.0/v2.0/DTLD_all.json

demo: export PATH := $(CURDIR)/$(BIN):$(PATH)
demo: $(INSTALLED)
	rm -rf demo
	dtld sample demo/raw --frames 120
	dtld inspect $(DEMO_LABELS) --root demo/raw --plot demo/labels.png
	dtld prepare $(DEMO_LABELS) --root demo/raw --out demo/tiles --tile-size 192 --overlap 0.1 --copies 0 \
		--empty-ratio 0.05 --val 0.03 --test 0.06
	dtld validate demo/tiles
	dtld preview demo/tiles --out demo/tiles.png
	kd train $(DEMO_TRAIN) --epochs 10 --student yolov5n --out demo/runs/teacher
	kd train $(DEMO_TRAIN) --epochs 4 --student benchmarks/yolov5p.yaml --out demo/runs/plain
	kd train $(DEMO_TRAIN) --epochs 3 --student benchmarks/yolov5p.yaml --teacher demo/runs/teacher/weights/best.pt \
		--out demo/runs/distilled
	kd report demo/runs --out demo/report.md
	dtld convert $(DEMO_LABELS) --root demo/raw --out demo/frames --val 0.03 --test 0.06
	kd predict $$(ls demo/frames/images/test/* | awk 'NR % 4 == 3') --imgsz 2048 \
		--model demo/runs/plain/weights/last.pt --model demo/runs/distilled/weights/last.pt --out demo/detections.png
	@cat demo/report.md

# One OpenMP thread per process: on busy cores, spinning threads make tiny networks several times slower.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Alone on the machine: about half an hour on two cores.
bench: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python benchmarks/prepare.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/labels.py

# Alone on the machine: ten minutes on two cores for steps; with DATA=a/data.yaml TEACHER=best.pt, an equal time or more for
# epochs and what is paid once.
bench-kd: $(INSTALLED)
	$(BIN)/kd bench --student yolov5n --teacher yolov5s --imgsz 320 --batch 8 --device cpu
	$(if $(DATA),OMP_NUM_THREADS=1 $(BIN)/python benchmarks/epochs.py --data $(DATA) --teacher $(TEACHER))

# Alone on the machine: half an hour on two cores. DATA is a dataset of dtld convert, MODEL a checkpoint.
bench-tiled: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python benchmarks/tiled.py --data $(DATA) --model $(MODEL)
	$(BIN)/python benchmarks/tiled.py --data $(DATA) --model $(MODEL) --tile-size 192 --overlap 0.1

# 10,000 damaged files and hostile options through every reader: about half an hour on two cores. More with N=50000,
# others with SEED=1.
bench-mutations: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/mutations.py $(N) $(if $(SEED),--seed $(SEED))

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo
	find . -name __pycache__ -prune -exec rm -rf {} +
