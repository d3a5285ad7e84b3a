"""AffectNet with a masked auto-encoder of local directional patterns.

Paper: L-SSAT, arXiv 2409.19582 (its MRGB/RLDP/CRGB).

    python -m hmtl_jax.main --config=configs/affectnet_mae_ldp.py --workdir=runs/affectnet_mae_ldp

Expected: no number to compare, as in affectnet_mae_lbp.py. Not run on the real data here.

Everything else as affectnet_mae_lbp.py; the paper's own form is
`--config.pretexts.mae.targets=ldp`.
"""

from configs import affectnet_supervised
from hmtl_jax import recipe


def get_config():
    """The recipe; it takes no argument."""
    config = affectnet_supervised.get_config()
    recipe.rebuild(config, "ldp_bits_patch")
    return config
