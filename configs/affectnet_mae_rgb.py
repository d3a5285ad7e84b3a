"""AffectNet with a masked auto-encoder of the pixels.

Paper: SSAT, arXiv 2310.20704.

    python -m hmtl_jax.main --config=configs/affectnet_mae_rgb.py --workdir=runs/affectnet_mae_rgb

Expected: SSAT publishes none for this data set in what we could read. Not run on the real data
here.

Everything else as affectnet_mae_lbp.py.
"""

from configs import affectnet_supervised
from hmtl_jax import recipe


def get_config():
    """The recipe; it takes no argument."""
    config = affectnet_supervised.get_config()
    recipe.rebuild(config, "rgb")
    return config
