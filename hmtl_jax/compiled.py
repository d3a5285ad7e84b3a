"""Compiled programs that outlive their process: a second start compiles nothing.

JAX keeps what took it over a second to compile, in a folder that several processes may share, and
reads it again where program, JAX and device are the same.
"""

import hashlib
import os
import pathlib
import re
import sys

import jax
import jaxlib.version

FOLDER = "~/.cache/hmtl_jax"


def keep(folder: str | None = None) -> None:
    """Sets where compiled programs are kept; "" keeps none.

    None: XDG_CACHE_HOME/hmtl_jax or ~/.cache/hmtl_jax, if JAX_COMPILATION_CACHE_DIR or JAX's own
    setting name no other. There each version of JAX, and each kind of processor, has a folder of
    its own: a program for a CPU takes instructions for granted that another one in the cluster may
    lack. A folder that can't be written is told, and the run goes on without.
    """
    if folder is None:
        if jax.config.jax_compilation_cache_dir:
            return
        base = os.environ.get("XDG_CACHE_HOME", "")
        folder = f"{base}/hmtl_jax" if base else FOLDER
    if not folder:
        jax.config.update("jax_enable_compilation_cache", False)
        return
    path = pathlib.Path(folder).expanduser() / f"jax-{jaxlib.version.__version__}-{processor()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(13, "may not be written", str(path))
    except OSError as error:
        print(
            f"warning: compiled programs are not kept: {path}: {error.strerror}; name a folder "
            "with --compile_cache or JAX_COMPILATION_CACHE_DIR.",
            file=sys.stderr,
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(path))


def processor() -> str:
    """Eight letters that tell one kind of processor from another, as far as Linux knows it."""
    try:
        found = re.findall(r"^(?:flags|Features|model name)\s*:.*$", _cpuinfo(), re.MULTILINE)
    except OSError:
        found = []
    return hashlib.blake2b("\n".join(sorted(set(found))).encode(), digest_size=4).hexdigest()


def _cpuinfo() -> str:
    return pathlib.Path("/proc/cpuinfo").read_text()
