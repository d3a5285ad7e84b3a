"""FER+ with a 3 × 3 puzzle, solved from the picture that the expression is read from.

Paper: HMTL, arXiv 2105.06421 (one-stream; on AffectNet it reports +0.75 points for
EfficientNet-B0).

    python -m hmtl_jax.main --config=configs/ferplus_puzzle.py:cpu --workdir=runs/ferplus_puzzle

Data, encoder and schedule are those of ferplus_supervised.py. The weight is that of the authors'
siamese code; `--config.stream=clean` reads expressions from the unpuzzled picture instead.
"""

from configs import ferplus_supervised
from hmtl_jax import recipe


def get_config(arg: str = ""):
    """arg: `` (one GPU) or `cpu`."""
    config = ferplus_supervised.get_config(arg)

    config.pretexts.puzzle = recipe.pretext_task("puzzle", tiles=3, weight=0.3)
    config.stream = "one_stream"
    return config
