"""FER+ with a masked auto-encoder beside it that rebuilds local directional patterns.

Paper: L-SSAT, arXiv 2409.19582; λ and the mask ratio are SSAT's (arXiv 2310.20704).

    python -m hmtl_jax.main --config=configs/ferplus_mae_ldp.py:cpu --workdir=runs/ferplus_mae_ldp

Expected: none published; near that of ferplus_mae_lbp.py. Not run to its end here.

Data, encoder and schedule are those of ferplus_supervised.py.
"""

from configs import ferplus_supervised
from hmtl_jax import recipe


def get_config(arg: str = ""):
    """arg: `` (one GPU) or `cpu`."""
    config = ferplus_supervised.get_config(arg)
    config.pretexts.mae = recipe.pretext_task("mae", targets=("ldp",), mask_ratio=0.75)
    config.weighting.name = "ssat"
    config.weighting.lam = 0.1
    return config
