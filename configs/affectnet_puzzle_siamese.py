"""AffectNet with the siamese puzzle of HMTL's later code.

Paper: HMTL, arXiv 2105.06421. One encoder reads the clean picture and the puzzled one at three
sizes (ours); the supervised loss is the geometric mean of the four, and 0.3 × the summed puzzle
losses is added; heads drop 0.3 of the features.

    python -m hmtl_jax.main --config=configs/affectnet_puzzle_siamese.py --workdir=runs/siamese

Expected: no number of this form is published in what we could read. Not run on the real data here.

From random weights, as HMTL trains.
"""

from configs import affectnet_supervised
from hmtl_jax import recipe


def get_config():
    """The recipe; it takes no argument."""
    config = affectnet_supervised.get_config("efficientnet")

    config.pretexts.puzzle = recipe.pretext_task(
        "puzzle", tiles=3, sizes=(224, 192, 160), weight=0.3, dropout=0.3
    )
    config.model.head_dropout = 0.3
    config.stream = "siamese"
    return config
