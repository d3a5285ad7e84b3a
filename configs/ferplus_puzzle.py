"""FER+ with a 3 × 3 puzzle, solved from the picture that the expression is read from.

Paper: HMTL, arXiv 2105.06421, one-stream. The weight is that of the authors' siamese code.

    python -m hmtl_jax.main --config=configs/ferplus_puzzle.py:cpu --workdir=runs/ferplus_puzzle

Expected: on AffectNet HMTL gains 0.75 points for EfficientNet-B0. Ours on 20 % of FER+ loses many,
because a small ViT in a short run does not solve the puzzle: experiments/ferplus_20_cpu.md.

Data, encoder and schedule are those of ferplus_supervised.py. `--config.stream=clean` reads
expressions from the unpuzzled picture instead.
"""

from configs import ferplus_supervised
from hmtl_jax import recipe


def get_config(arg: str = ""):
    """arg: `` (one GPU) or `cpu`."""
    config = ferplus_supervised.get_config(arg)

    config.pretexts.puzzle = recipe.pretext_task("puzzle", tiles=3, weight=0.3)
    config.stream = "one_stream"
    return config
