"""AffectNet with a masked auto-encoder of pixels and local directional patterns.

Paper: L-SSAT, arXiv 2409.19582; both targets at once are ours, weighted alike.

    python -m hmtl_jax.main --config=configs/affectnet_mae_rgb_ldp.py --workdir=runs/affectnet_mae

Expected: none published. Not run on the real data here.

Everything else as affectnet_mae_ldp.py.
"""

from configs import affectnet_supervised
from hmtl_jax import recipe


def get_config():
    """The recipe; it takes no argument."""
    config = affectnet_supervised.get_config()
    recipe.rebuild(config, "rgb", "ldp_bits_patch")
    return config
