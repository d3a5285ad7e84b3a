"""Whole runs for tests: in this process, or as the command that a user types."""

import contextlib
import dataclasses
import io
import json
import os
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np
from ml_collections import ConfigDict

from hmtl_jax import jobs
from hmtl_jax.metrics import writer
from tests import run_recipe

ROOT = pathlib.Path(__file__).parents[1]
# What of metrics.jsonl hangs on the machine's mood.
TIMES = ("images_per_second", "data_wait_fraction")
SIZES = {"train": 96, "validation": 20, "test": 24}
STEPS, PER_EPOCH = 18, 6


def config(data_dir, supervised=False, **overrides):
    """The tiny recipe; `overrides` by dotted keys with `__` for the dots.

    supervised: without its pretext, which takes half of the time to compile.
    """
    found = run_recipe.get_config()
    found.data.data_dir = str(data_dir)
    if supervised:
        found.pretexts, found.weighting.name = ConfigDict(), "fixed"
    with found.unlocked():
        found.update_from_flattened_dict(
            {key.replace("__", "."): value for key, value in overrides.items()}
        )
    return found.lock()


def run(cfg, workdir):
    """Runs in this process; returns the printed lines, or raises what the run raises."""
    printed = io.StringIO()
    # Optax's Adam takes a float to the power of an integer, which strict promotion refuses.
    with contextlib.redirect_stdout(printed), jax.numpy_dtype_promotion("standard"):
        jobs.run(cfg, str(workdir))
    return printed.getvalue().splitlines()


@dataclasses.dataclass
class Command:
    """`python -m hmtl_jax.main` as a user types it, with one CPU device."""

    data_dir: pathlib.Path
    workdir: pathlib.Path
    cache: pathlib.Path
    flags: tuple[str, ...] = ()
    devices: int = 1

    @property
    def environment(self):
        return os.environ | {
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={self.devices} "
            "--xla_backend_optimization_level=0",  # compiles in half the time
            "JAX_COMPILATION_CACHE_DIR": str(self.cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

    @property
    def arguments(self):
        return [
            "--config=tests/run_recipe.py",
            f"--workdir={self.workdir}",
            f"--config.data.data_dir={self.data_dir}",
            *self.flags,
        ]

    def start(self, launcher=()):
        """Starts it; its output, errors too, goes to WORKDIR.log."""
        with self.log.open("a") as out:
            return subprocess.Popen(
                [*(launcher or (sys.executable, "-m", "hmtl_jax.main")), *self.arguments],
                cwd=ROOT, env=self.environment, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                start_new_session=True,
            )  # fmt: skip

    def finish(self, process=None, launcher=()):
        """Waits for its end; returns the exit status."""
        return (process or self.start(launcher)).wait(timeout=400)

    @property
    def log(self):
        return self.workdir.with_suffix(".log")

    @property
    def printed(self):
        return self.log.read_text().splitlines()


def wait_until(process, condition, seconds=300):
    """Polls fast until the condition holds; fails if the process ends before."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended with status {process.returncode} before"
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.0005)


def metrics(workdir):
    """The lines of metrics.jsonl without times."""
    return [
        {name: value for name, value in line.items() if name not in TIMES}
        for line in writer.read(workdir / "metrics.jsonl")
    ]


def evaluations(workdir):
    """eval/*.json by name."""
    return {path.name: json.loads(path.read_text()) for path in (workdir / "eval").glob("*.json")}


def steps(workdir):
    """The steps that have checkpoints."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


def arrays(workdir, step):
    """A checkpoint's arrays by path."""
    from orbax.checkpoint import v1 as ocp

    folder = workdir.absolute() / "checkpoints" / str(step)
    # Its own sharding may name devices that this process lacks.
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here),
        ocp.metadata(folder).metadata,
    )
    leaves = jax.tree_util.tree_flatten_with_path(ocp.load(folder, abstract))[0]
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(x) for path, x in leaves
    }


def assert_same_arrays(ours, theirs):
    """Bit for bit."""
    assert ours.keys() == theirs.keys()
    different = [name for name in ours if ours[name].tobytes() != theirs[name].tobytes()]
    assert different == []
