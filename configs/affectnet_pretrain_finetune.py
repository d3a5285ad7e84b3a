r"""AffectNet: a masked auto-encoder alone, then supervised fine-tuning of its encoder.

Paper: SSAT, arXiv 2310.20704, which compares joint training to this; the method is MAE's (He 2022).
The layer-wise decay of the learning rate by 0.75, and as many epochs for each stage as for joint
training, are ours.

    python -m hmtl_jax.main --config=configs/affectnet_pretrain_finetune.py:pretrain \
        --workdir=runs/affectnet_mae
    python -m hmtl_jax.main --config=configs/affectnet_pretrain_finetune.py:finetune \
        --config.init_from=runs/affectnet_mae --workdir=runs/affectnet_ft

Expected: none published for this data set in what we could read; SSAT finds joint training the
better of the two on others. Not run on the real data here.
"""

from configs import affectnet_supervised
from hmtl_jax import recipe
from hmtl_jax.errors import UserError


def get_config(arg: str):
    """arg: `pretrain` or `finetune`."""
    pretrain, finetune = recipe.arguments(arg, "pretrain", "finetune")
    config = affectnet_supervised.get_config()
    if pretrain == finetune:
        raise UserError("Say which stage: affectnet_pretrain_finetune.py:pretrain or …:finetune.")
    if finetune:
        config.optim.layer_decay = 0.75
    else:
        recipe.pretrain_only(config)
        config.pretexts.mae = recipe.pretext_task("mae", targets=("rgb",), mask_ratio=0.75)
    return config
