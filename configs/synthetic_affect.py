"""Rendered faces: valence and arousal.

With a masked auto-encoder of pixels and LBP maps beside the task, or without.

    python -m hmtl_jax.main --config=configs/synthetic_affect.py --workdir=runs/affect
    python -m hmtl_jax.main --config=configs/synthetic_affect.py:supervised --workdir=runs/affect_sl

Minutes on two cores. Everything else as synthetic.py.
"""

from configs import synthetic
from hmtl_jax import recipe


def get_config(arg: str = ""):
    """arg: `` (with the pretext) or `supervised`."""
    (supervised,) = recipe.arguments(arg, "supervised")
    config = synthetic.get_config()
    config.tasks = {
        "affect": recipe.task("regression", labels=("valence", "arousal"), objective="ccc")
    }
    config.checkpoint.best = "affect/ccc"
    if supervised:
        config.pretexts = {}
        config.weighting.name = "fixed"
    return config
