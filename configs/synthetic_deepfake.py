r"""Rendered faces: real or blended.

Paper: HMTL (arXiv 2105.06421) is the method; the faces are ours.

    python -m hmtl_jax.main --config=configs/synthetic_deepfake.py --workdir=runs/deepfake
    python -m hmtl_jax.main --config=configs/synthetic_deepfake.py:supervised \
        --workdir=runs/deepfake_sl

Expected (ours, one seed): an AUC of 57.1 % on test with the puzzle and 51.7 without, where chance
has 50: four hundred labels teach little of seams; `python -m experiments.tables
synthetic_deepfake`.

With a puzzle beside the task, or without, and labels for one face in twenty. Minutes on two cores.
Everything else as synthetic.py.
"""

from configs import synthetic
from hmtl_jax import recipe


def get_config(arg: str = ""):
    """arg: `` (with the pretext) or `supervised`."""
    config = synthetic.get_config(arg)
    config.tasks = {"deepfake": recipe.task("binary", label="fake")}
    config.checkpoint.best = "deepfake/auc"
    return config
