r"""FER+: a masked auto-encoder alone, then supervised fine-tuning of its encoder.

Paper: SSAT, arXiv 2310.20704, which compares joint training to the same two losses one after the
other. Each stage has the epochs of ferplus_supervised.py, so both together cost more than joint
training; that, and the layer-wise decay of 0.75, are ours.

    python -m hmtl_jax.main --config=configs/ferplus_mae_rgb_pretrain.py:cpu --workdir=runs/mae
    python -m hmtl_jax.main --config=configs/ferplus_mae_rgb_pretrain.py:cpu,finetune \
        --config.init_from=runs/mae --workdir=runs/mae_ft

Expected: none published. Not run to its end here.
"""

from configs import ferplus_supervised
from hmtl_jax import recipe


def get_config(arg: str = ""):
    """arg: `cpu`, `finetune`, or both with a comma."""
    cpu, finetune = recipe.arguments(arg, "cpu", "finetune")
    config = ferplus_supervised.get_config("cpu" if cpu else "")
    if finetune:
        config.optim.layer_decay = 0.75
        return config
    recipe.pretrain_only(config)
    config.pretexts.mae = recipe.pretext_task("mae", targets=("rgb",), mask_ratio=0.75)
    return config
