"""FER+ with a masked auto-encoder beside it that rebuilds the pixels.

Paper: SSAT, arXiv 2310.20704, with its λ and mask ratio.

    python -m hmtl_jax.main --config=configs/ferplus_mae_rgb.py:cpu --workdir=runs/ferplus_mae_rgb

Expected: none published; near that of ferplus_mae_lbp.py. Not run to its end here.

Data, encoder and schedule are those of ferplus_supervised.py.
"""

from configs import ferplus_supervised
from hmtl_jax import recipe


def get_config(arg: str = ""):
    """arg: `` (one GPU) or `cpu`."""
    config = ferplus_supervised.get_config(arg)
    recipe.rebuild(config, "rgb")
    return config
