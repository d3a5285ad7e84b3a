r"""Rendered faces: real or blended.

Paper: HMTL (arXiv 2105.06421) is the method; the faces are ours.

    python -m hmtl_jax.main --config=configs/synthetic_deepfake.py --workdir=runs/deepfake
    python -m hmtl_jax.main --config=configs/synthetic_deepfake.py:supervised \
        --workdir=runs/deepfake_sl

Expected (ours, one seed): an AUC of 85.2 % on test with the puzzle and 87.2 without, -2.0 [-3.7,
-0.6] over faces; 85.3 and 85.5 on validation. It brings nothing here: `python -m experiments.tables
synthetic_deepfake`.

With a puzzle beside the task, or without, and labels for one face in five. At the full 64 px and
hardly cropped, because a forgery is told by a seam and by what is smooth within it: at the 40 px of
synthetic.py, with labels for one in twenty and half the steps, the AUC was 57.1 and 51.7 %, where
chance has 50. Seven minutes of one core, or thirteen with the puzzle. Everything else as
synthetic.py.
"""

from configs import synthetic
from hmtl_jax import recipe

LABELLED = 0.2


def get_config(arg: str = ""):
    """arg: `` (with the pretext) or `supervised`."""
    config = synthetic.get_config(arg)
    config.steps = 800
    config.data.image_size = 64
    config.data["labelled" if config.pretexts else "subset"] = LABELLED
    config.augment.crop_scale = (0.85, 1.0)
    config.tasks = {"deepfake": recipe.task("binary", label="fake")}
    config.checkpoint.best = "deepfake/auc"
    return config
