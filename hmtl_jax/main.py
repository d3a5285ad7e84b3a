"""python -m hmtl_jax.main --config=configs/RECIPE.py --workdir=runs/NAME [--config.KEY=VALUE …]"""

import errno
import logging
import pathlib
import sys
from typing import Any

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from hmtl_jax import commandline
from hmtl_jax.errors import UserError

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file(
    "config",
    None,
    "The recipe, as configs/NAME.py. --config.KEY=VALUE overrides a key of it; a list is written "
    "a,b (--config.pretexts.mae.targets=lbp,rgb --config.augment.crop_scale=0.5,1).",
    lock_config=True,
)
flags.DEFINE_string("workdir", None, "Where the run leaves its files; the same one continues it.")
flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0; found alone on Slurm and TPU.")
flags.DEFINE_integer("num_processes", None, "Processes of the whole run.")
flags.DEFINE_integer("process_id", None, "This one's number, from 0.")
flags.DEFINE_string(
    "compile_cache",
    None,
    "Where compiled programs are kept for the next start; '' keeps none. Default: a folder of "
    "~/.cache/hmtl_jax, or JAX_COMPILATION_CACHE_DIR.",
)
flags.mark_flags_as_required(["config"])


# A full disk, a quota, a file system or a folder that may not be written.
OUT_OF_REACH = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)


def main(argv: list[str]) -> None:
    """Does the recipe's job; a mistake of the user ends it with one sentence and status 1."""
    if len(argv) > 1:
        sys.exit(f"error: {argv[1]!r} is not a flag; write --config.KEY=VALUE.")
    # After the flags are parsed, so that a wrong one is reported at once.
    from hmtl_jax import cluster, compiled, jobs

    absl_logging.set_verbosity(absl_logging.WARNING)
    absl_logging.get_absl_handler().addFilter(_concerns_user)
    compiled.keep(FLAGS.compile_cache)
    try:
        cluster.join(FLAGS.coordinator, FLAGS.num_processes, FLAGS.process_id)
        planning = FLAGS.config.job == "plan"
        jobs.run(FLAGS.config, FLAGS.workdir or ("" if planning else workdir_beside(FLAGS.config)))
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in OUT_OF_REACH:
            raise
        sys.exit(
            f"error: {error.filename or FLAGS.workdir}: {error.strerror}; free the disk or mend "
            "the folder, then the same command goes on from the last checkpoint."
        )
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)


def workdir_beside(config: Any) -> str:
    """Where a probe leaves its report without a workdir: in the run that it probes."""
    probed = pathlib.Path(config.init_from or "-").expanduser()  # of several encoders no folder
    if config.job == "probe" and probed.is_dir():
        # Not in a checkpoint's own folder, which goes when it is pruned.
        inside = probed.parent.name == "checkpoints" and probed.name.isdigit()
        run = probed.parents[1] if inside else probed
        return str(run / "probe")
    raise UserError("--workdir is missing; it names the folder where the run leaves its files.")


def _concerns_user(record: logging.LogRecord) -> bool:
    """False for what Orbax warns of in every healthy run, such as waiting for an earlier save."""
    return record.levelno > logging.WARNING or "orbax" not in record.pathname


if __name__ == "__main__":
    commandline.with_huge_pages()
    app.run(main, flags_parser=commandline.parse)
