"""FairFace with a masked auto-encoder beside the three tasks that rebuilds local binary patterns.

Paper: L-SSAT, arXiv 2409.19582 (on other data); weights are SSAT's (arXiv 2310.20704).

    python -m hmtl_jax.main --config=configs/fairface_mae_lbp.py:cpu --workdir=runs/fairface_mae_lbp

Expected: none published. Not run to its end here.

Everything else as fairface_supervised.py.
L-SSAT rebuilds the code of each pixel, `--config.pretexts.mae.targets=lbp`, of which next to
nothing can be foreseen on FER+ and FairFace; how often each of its comparisons holds in a patch is
ours (experiments/README.md).
"""

from configs import fairface_supervised
from hmtl_jax import recipe


def get_config(arg: str = ""):
    """arg: `` (one GPU) or `cpu`."""
    config = fairface_supervised.get_config(arg)
    recipe.rebuild(config, "lbp_bits_patch")
    return config
