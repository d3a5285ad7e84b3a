"""AffectNet with a 3 × 3 puzzle, solved from the picture that the expression is read from.

Paper: HMTL, arXiv 2105.06421, one-stream; the puzzle weighs as much as the expression, and its head
drops 0.3 of the features, as in the authors' code. Schedule and augmentation are not all published:
ours.

    python -m hmtl_jax.main --config=configs/affectnet_puzzle.py --workdir=runs/affectnet_puzzle

Expected, from the paper, EfficientNet-B0: 61.09 % on validation against 60.34 % supervised. Not run
on the real data here.

From random weights, as HMTL trains.
"""

from configs import affectnet_supervised
from hmtl_jax import recipe


def get_config():
    """The recipe; it takes no argument."""
    config = affectnet_supervised.get_config("efficientnet")

    config.pretexts.puzzle = recipe.pretext_task("puzzle", tiles=3, weight=1.0)
    config.model.head_dropout = 0.3
    config.stream = "one_stream"
    return config
