"""AffectNet with a masked auto-encoder beside it that rebuilds local binary patterns.

Paper: L-SSAT, arXiv 2409.19582. Its λ and mask ratio are not published in what we could read:
SSAT's, arXiv 2310.20704, stand here.

    python -m hmtl_jax.main --config=configs/affectnet_mae_lbp.py --workdir=runs/affectnet_mae_lbp

Expected: no number to compare. L-SSAT reports an average accuracy of .88 under a protocol of its
own, which is not the eight-class one. Not run on the real data here.

Everything else as affectnet_supervised.py.
L-SSAT rebuilds the code of each pixel, `--config.pretexts.mae.targets=lbp`, of which next to
nothing can be foreseen on FER+ and FairFace; how often each of its comparisons holds in a patch is
ours (experiments/README.md).
"""

from configs import affectnet_supervised
from hmtl_jax import recipe


def get_config():
    """The recipe; it takes no argument."""
    config = affectnet_supervised.get_config()
    recipe.rebuild(config, "lbp_bits_patch")
    return config
