"""Every test runs on eight virtual CPU devices, with strict promotion of dtypes and ranks."""

import os
import pathlib
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

# Compiling is most of what tests cost, and optimising most of that: half of their time. What bounds
# the last bits is run with it too, by .ci/run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

# Commands that tests start keep what they compile apart from what the user's own do.
os.environ["XDG_CACHE_HOME"] = os.path.join(tempfile.gettempdir(), f"hmtl-jax-tests-{os.getuid()}")

# The flags above must stand before the first import of JAX.
import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real faces; tests that need it skip where it is missing."""
    default = pathlib.Path(__file__).parents[2] / "shared" / "data"
    folder = pathlib.Path(os.environ.get("HMTL_SHARED_DATA", default))
    if not folder.is_dir():
        pytest.skip(f"real faces are not at {folder}; set HMTL_SHARED_DATA to their folder")
    return folder


@pytest.fixture(scope="session")
def compile_cache(tmp_path_factory) -> pathlib.Path:
    """A folder where JAX keeps compiled programs, for this process and those that tests start."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # one for all workers
    folder = folder / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> pathlib.Path:
    """A data_dir with a few rendered faces of 32 px; see tests/runs.py for how many."""
    from hmtl_jax import prepare
    from tests import runs

    data_dir = tmp_path_factory.mktemp("data")
    prepare.prepare("synthetic", None, data_dir, progress=False, size=32, **runs.SIZES)
    return data_dir


@pytest.fixture(scope="session")
def whole_run(tiny_data, compile_cache, tmp_path_factory):
    """The tiny run as a command, on one device without data workers, that nothing disturbed."""
    from tests import runs

    command = runs.Command(tiny_data, tmp_path_factory.mktemp("whole") / "run", compile_cache)
    assert command.finish() == 0, command.printed
    return command


@pytest.fixture(scope="session")
def short_run(tiny_data, compile_cache, tmp_path_factory):
    """The workdir of the tiny run after eight steps in this process; only to be copied."""
    from tests import runs

    folder = tmp_path_factory.mktemp("short") / "run"
    runs.run(runs.config(tiny_data, steps=8, epochs=0.0), folder)
    return folder


@pytest.fixture(scope="module")
def finished(short_run, tmp_path_factory):
    """A copy of the short run's workdir, into which a module's tests may write."""
    return shutil.copytree(short_run, tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture(scope="module")
def images_bhwc(request):
    """BATCH random images of SIZE pixels, as the test's module says; eight bits a channel."""
    import jax.numpy as jnp
    import numpy as np

    shape = (request.module.BATCH, request.module.SIZE, request.module.SIZE, 3)
    return jnp.asarray(np.random.default_rng(0).integers(0, 256, shape) / 255, jnp.float32)
