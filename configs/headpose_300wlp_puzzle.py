"""Head pose with a 3 × 3 puzzle beside it.

Paper: HMTL's companion, arXiv 2108.04893. The pose is read from the clean picture: a puzzled one
has no single pose to see (ours).

    python -m hmtl_jax.main --config=configs/headpose_300wlp_puzzle.py --workdir=runs/pose_puzzle

Expected: no number that we could read. Not run on the real data here.

Everything else as headpose_300wlp_supervised.py.
"""

from configs import headpose_300wlp_supervised
from hmtl_jax import recipe


def get_config():
    """The recipe; it takes no argument."""
    config = headpose_300wlp_supervised.get_config()
    config.pretexts.puzzle = recipe.pretext_task("puzzle", tiles=3, weight=0.1)
    return config
