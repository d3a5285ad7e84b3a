r"""Head pose: an encoder pre-trained on rotated tiles, then trained with a puzzle beside the task.

Paper: HMTL's companion, arXiv 2108.04893.

    python -m hmtl_jax.main --config=configs/headpose_300wlp_rotation_pretrain_puzzle.py:pretrain \
        --workdir=runs/pose_rotation
    python -m hmtl_jax.main --config=configs/headpose_300wlp_rotation_pretrain_puzzle.py:puzzle \
        --config.init_from=runs/pose_rotation --workdir=runs/pose_rotation_puzzle

Expected: no number that we could read. Not run on the real data here.

Everything else as headpose_300wlp_puzzle.py.
"""

from configs import headpose_300wlp_puzzle
from hmtl_jax import recipe
from hmtl_jax.errors import UserError


def get_config(arg: str):
    """arg: `pretrain` or `puzzle`."""
    pretrain, puzzle = recipe.arguments(arg, "pretrain", "puzzle")
    if pretrain == puzzle:
        raise UserError("Say which stage: the recipe's argument is pretrain or puzzle.")
    config = headpose_300wlp_puzzle.get_config()
    if pretrain:
        recipe.pretrain_only(config)
        config.pretexts = {"rotation": recipe.pretext_task("rotation", tiles=3)}
    return config
