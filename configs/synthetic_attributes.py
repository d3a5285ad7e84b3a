r"""Rendered faces: attributes such as glasses, beard and hat.

Paper: SSAT (arXiv 2310.20704) and L-SSAT (arXiv 2409.19582) are the method; the faces are ours.

    python -m hmtl_jax.main --config=configs/synthetic_attributes.py --workdir=runs/attributes
    python -m hmtl_jax.main --config=configs/synthetic_attributes.py:supervised \
        --workdir=runs/attributes_sl

Expected: ours, in three epochs, in experiments/synthetic_attributes.md.

With a masked auto-encoder of pixels and LBP maps beside the task, or without. Minutes on two cores.
Everything else as synthetic.py.
"""

from configs import synthetic
from hmtl_jax import recipe


def get_config(arg: str = ""):
    """arg: `` (with the pretext) or `supervised`."""
    (supervised,) = recipe.arguments(arg, "supervised")
    config = synthetic.get_config()
    config.tasks = {"attributes": recipe.task("multilabel", labels=("attributes",))}
    config.checkpoint.best = "attributes/accuracy"
    if supervised:
        config.pretexts = {}
        config.weighting.name = "fixed"
    return config
