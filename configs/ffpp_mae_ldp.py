"""FaceForensics++ with a masked auto-encoder beside it that rebuilds local directional patterns.

Paper: L-SSAT, arXiv 2409.19582; λ and mask ratio are SSAT's (arXiv 2310.20704).

    python -m hmtl_jax.main --config=configs/ffpp_mae_ldp.py --workdir=runs/ffpp_mae_ldp

Expected: L-SSAT reports an average accuracy of .94 under its own protocol. Not run on the real data
here.

Everything else as ffpp_supervised.py.
L-SSAT rebuilds the code of each pixel, `--config.pretexts.mae.targets=ldp`, of which
nothing can be foreseen on FER+; how often each of its comparisons holds in a patch is ours
(experiments/README.md).
"""

from configs import ffpp_supervised
from hmtl_jax import recipe


def get_config():
    """The recipe; it takes no argument."""
    config = ffpp_supervised.get_config()
    recipe.rebuild(config, "ldp_bits_patch")
    return config
