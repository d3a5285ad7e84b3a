r"""Rendered faces: head pose (yaw, pitch, roll).

Paper: SSAT (arXiv 2310.20704) and L-SSAT (arXiv 2409.19582) are the method; the faces are ours.

    python -m hmtl_jax.main --config=configs/synthetic_pose.py --workdir=runs/pose
    python -m hmtl_jax.main --config=configs/synthetic_pose.py:supervised \
        --workdir=runs/pose_sl

Expected: ours, in three epochs, in experiments/synthetic_pose.md.

With a masked auto-encoder of pixels and LBP maps beside the task, or without. Minutes on two cores.
Everything else as synthetic.py.
"""

from configs import synthetic
from hmtl_jax import recipe


def get_config(arg: str = ""):
    """arg: `` (with the pretext) or `supervised`."""
    (supervised,) = recipe.arguments(arg, "supervised")
    config = synthetic.get_config()
    config.tasks = {"pose": recipe.task("pose", labels=("pose",))}
    config.augment.crop_ratio = (1.0, 1.0)  # another ratio would falsify the angles
    config.checkpoint.best = "pose/mae"
    if supervised:
        config.pretexts = {}
        config.weighting.name = "fixed"
    return config
