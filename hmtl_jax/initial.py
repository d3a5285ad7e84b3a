"""What networks start from: another run's checkpoint, or a safetensors file in timm's naming."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from hmtl_jax import checkpoint, files, trained
from hmtl_jax.cluster import say
from hmtl_jax.errors import UserError
from hmtl_jax.models import pretrained, vit
from hmtl_jax.state import TrainState, count, with_encoder

PYTORCH = (".pth", ".pt", ".bin", ".ckpt", ".tar")


def init_from(config: ConfigDict, current: TrainState) -> TrainState:
    """The state with the encoder of `config.init_from`."""
    parts = {"params": current.params, "batch_stats": current.batch_stats}
    ours = {part: tree["encoder"] for part, tree in parts.items() if "encoder" in tree}
    return with_encoder(current, encoder(config, ours))


def encoder(config: ConfigDict, ours: Mapping[str, Any]) -> dict[str, Any]:
    """The variables of the encoder of `config.init_from`; says what it took and what it left.

    ours: {"params": …, "batch_stats": …} of the recipe's encoder, arrays or shapes with shardings,
    in whose place they come.
    """
    path = config.init_from
    if path.endswith(PYTORCH):
        raise UserError(
            f"init_from {path} is a PyTorch file, which can hold code; convert it: python -c "
            f"\"import torch, safetensors.torch as s; w = torch.load('{path}', map_location='cpu', "
            "weights_only=True); w = w.get('model', w.get('state_dict', w)); s.save_file({k: "
            "v.contiguous() for k, v in w.items()}, 'encoder.safetensors')\"."
        )
    if path.endswith(".safetensors"):
        name, constants = config.model.encoder, config.init_constants
        file, positions = files.local(path, "init_from"), config.model.positions
        found, left = pretrained.load(file, name, ours, constants, positions)
        found = jax.tree.map(_put_like, found, ours)
        taken, left = f"{count(found['params']):,} parameters", ", ".join(left)
    else:
        folder, _ = trained.find(files.local(path, "init_from"))
        _check_positions(config, path, trained.recipe_of(folder))
        found, taken, left = checkpoint.load_encoder(folder, ours)
        taken, left = checkpoint.grouped(taken), checkpoint.grouped(left)
    say(f"init_from {path}: took {taken}")
    say(f"init_from {path}: left {left or 'nothing'}")
    return found


def _check_positions(config: ConfigDict, path: str, theirs: ConfigDict) -> None:
    ours, made = config.model.positions, theirs.model.positions
    if vit.is_vit(config.model.encoder) and ours != made:
        raise UserError(
            f"init_from {path} was trained with model.positions {made!r}, and the recipe has "
            f"{ours!r}; set model.positions to {made!r}."
        )


def networks(pretexts: Mapping[str, Any], current: TrainState) -> TrainState:
    """The state with the weights of the frozen networks that pretexts read; says what it took."""
    frozen = {}
    for name, ours in current.frozen.items():
        encoder, file = pretexts[name].network
        found, _ = pretrained.load(file, encoder, ours)
        frozen[name] = jax.tree.map(_put_like, found, ours)
        say(f"pretexts.{name}: took {count(found['params']):,} parameters of {encoder} from {file}")
    return dataclasses.replace(current, frozen=frozen)


def _put_like(new: Any, old: jax.Array) -> jax.Array:
    """An array of the host to where `old` lives; every process has the whole of it."""
    return jax.make_array_from_callback(old.shape, old.sharding, lambda index: new[index])
