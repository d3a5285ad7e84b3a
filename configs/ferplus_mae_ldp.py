"""FER+ with a masked auto-encoder beside it that rebuilds local directional patterns.

Paper: L-SSAT, arXiv 2409.19582; λ and the mask ratio are SSAT's (arXiv 2310.20704).

    python -m hmtl_jax.main --config=configs/ferplus_mae_ldp.py:cpu --workdir=runs/ferplus_mae_ldp

Expected: none published; near that of ferplus_mae_lbp.py. Not run to its end here.

Data, encoder and schedule are those of ferplus_supervised.py.
L-SSAT rebuilds the code of each pixel, `--config.pretexts.mae.targets=ldp`, of which
nothing can be foreseen; how often each of its comparisons holds in a patch is ours. Of that a small
ViT foresees a tenth after 1,000 steps without movement; with this recipe's rotation, shear and zoom
it learns how they smooth a picture, and on clean ones less than nothing (experiments/README.md).
"""

from configs import ferplus_supervised
from hmtl_jax import recipe


def get_config(arg: str = ""):
    """arg: `` (one GPU) or `cpu`."""
    config = ferplus_supervised.get_config(arg)
    recipe.rebuild(config, "ldp_bits_patch")
    return config
