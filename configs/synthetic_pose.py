r"""Rendered faces: head pose (yaw, pitch, roll).

Paper: HMTL (arXiv 2105.06421) is the method; the faces are ours.

    python -m hmtl_jax.main --config=configs/synthetic_pose.py --workdir=runs/pose
    python -m hmtl_jax.main --config=configs/synthetic_pose.py:supervised \
        --workdir=runs/pose_sl

Expected (ours, one seed): a mean error of 2.93° on test with the puzzle and 2.85° without: it
brings nothing here; `python -m experiments.tables synthetic_pose`.

With a puzzle beside the task, or without, and labels for one face in twenty. Minutes on two cores.
Everything else as synthetic.py.
"""

from configs import synthetic
from hmtl_jax import recipe


def get_config(arg: str = ""):
    """arg: `` (with the pretext) or `supervised`."""
    config = synthetic.get_config(arg)
    config.tasks = {"pose": recipe.task("pose", labels=("pose",))}
    config.augment.crop_ratio = (1.0, 1.0)  # another ratio would falsify the angles
    config.checkpoint.best = "pose/mae"
    return config
