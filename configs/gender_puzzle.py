"""Gender on FairFace with a 3 × 3 puzzle beside it, solved from the same puzzled picture.

Paper: HMTL, arXiv 2105.06421 (one-stream), which has gender among its tasks.

    python -m hmtl_jax.main --config=configs/gender_puzzle.py:cpu --workdir=runs/gender_puzzle

Expected: none published on these data. Not run to its end with the CNN of today; a small ViT lost
ten points by it (experiments/README.md).

Everything else as gender_supervised.py.
"""

from configs import gender_supervised
from hmtl_jax import recipe


def get_config(arg: str = ""):
    """arg: `` (one GPU) or `cpu`."""
    config = gender_supervised.get_config(arg)
    config.pretexts.puzzle = recipe.pretext_task("puzzle", tiles=3, weight=0.3)
    config.stream = "one_stream"
    return config
