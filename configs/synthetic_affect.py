r"""Rendered faces: valence and arousal.

Paper: HMTL (arXiv 2105.06421) is the method; the faces are ours.

    python -m hmtl_jax.main --config=configs/synthetic_affect.py --workdir=runs/affect
    python -m hmtl_jax.main --config=configs/synthetic_affect.py:supervised \
        --workdir=runs/affect_sl

Expected (ours, one seed): a CCC of 0.60 on test with the puzzle and 0.52 without;
`python -m experiments.tables synthetic_affect`.

With a puzzle beside the task, or without, and labels for one face in twenty. Minutes on two cores.
Everything else as synthetic.py.
"""

from configs import synthetic
from hmtl_jax import recipe


def get_config(arg: str = ""):
    """arg: `` (with the pretext) or `supervised`."""
    config = synthetic.get_config(arg)
    config.tasks = {
        "affect": recipe.task("regression", labels=("valence", "arousal"), objective="ccc")
    }
    config.checkpoint.best = "affect/ccc"
    return config
