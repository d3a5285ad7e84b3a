# Every target sets up what it needs in .venv, once (launch/setup.sh).
#   PYTHON=3.12      build .venv on this Python (a version, a name or a file) instead of the newest
#   ARGS="..."       more arguments, for demo and test
#   WORKERS=2        processes that run tests side by side

PY := .venv/bin/python
WORKERS ?= 2

.PHONY: help demo test lint bench clean

help:
	@echo "make demo    learn expressions from few labels, without and with a puzzle; results in runs/demo"
	@echo "make test    run all tests"
	@echo "make lint    check style, types and shell scripts"
	@echo "make bench   measure textures, training step and input pipeline beside their peers"
	@echo "make clean   remove .venv and caches; runs/ and data/ stay"
	@sed -n '2,/^$$/s/^# *//p' Makefile

demo:
	@launch/setup.sh
	launch/local.sh --config=configs/synthetic.py:supervised --workdir=runs/demo/supervised $(ARGS)
	launch/local.sh --config=configs/synthetic.py --workdir=runs/demo/puzzle $(ARGS)
	launch/local.sh --module hmtl_jax.compare -- runs/demo/supervised runs/demo/puzzle --out runs/demo

# worksteal: one worker mostly keeps the tests of a file, whose compiled functions it then has already.
test:
	@launch/setup.sh requirements-video.txt requirements-onnx.txt requirements-dev.txt
	$(PY) -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

lint:
	@launch/setup.sh requirements-video.txt requirements-onnx.txt requirements-dev.txt
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright --pythonpath $(PY)
	.venv/bin/shellcheck launch/*.sh launch/slurm.sbatch .ci/run

# PyTorch is large and optional: `launch/setup.sh requirements-bench.txt` adds its columns.
bench:
	@launch/setup.sh requirements-video.txt requirements-onnx.txt requirements-dev.txt
	launch/local.sh --module benchmarks.textures
	launch/local.sh --module benchmarks.train_step
	launch/local.sh --module benchmarks.input_pipeline

clean:
	rm -rf .venv .venv-* build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
