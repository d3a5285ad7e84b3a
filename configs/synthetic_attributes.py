r"""Rendered faces: attributes such as glasses, beard and hat.

Paper: HMTL (arXiv 2105.06421) is the method; the faces are ours.

    python -m hmtl_jax.main --config=configs/synthetic_attributes.py --workdir=runs/attributes
    python -m hmtl_jax.main --config=configs/synthetic_attributes.py:supervised \
        --workdir=runs/attributes_sl

Expected (ours, one seed): test accuracy 84.8 % with the puzzle and 86.8 without: here it costs
something; `python -m experiments.tables synthetic_attributes`.

With a puzzle beside the task, or without, and labels for one face in twenty. Minutes on two cores.
Everything else as synthetic.py.
"""

from configs import synthetic
from hmtl_jax import recipe


def get_config(arg: str = ""):
    """arg: `` (with the pretext) or `supervised`."""
    config = synthetic.get_config(arg)
    config.tasks = {"attributes": recipe.task("multilabel", labels=("attributes",))}
    config.checkpoint.best = "attributes/accuracy"
    return config
