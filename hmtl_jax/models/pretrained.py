"""Encoders in and out of safetensors files, in timm's naming of tensors.

The MAE authors name their encoder's tensors as timm does. What is read: ViT, ResNet and timm's
`efficientnet_b*`; classifier heads and MAE's decoder are left behind. Weights are exact but for
learned positions on another grid, which are interpolated as timm does it.
"""

import dataclasses
import math
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util

from hmtl_jax.errors import UserError, lookup
from hmtl_jax.images import IMAGENET_MEAN, IMAGENET_STD, RESIZE
from hmtl_jax.models import cnn, efficientnet, resnet, vit
from hmtl_jax.models.conv import split_name

# Heads of timm's models, and the decoder of the MAE authors' pretraining model.
LEFT = ("head.", "fc.", "fc_norm.", "classifier.", "decoder_", "mask_token")
# What timm calls it, by the first letters of the family.
HEADS = {"resnet": "fc", "effici": "classifier"}
POSITIONS = "params/positions_table"
SHOWN = 20  # names of each kind of fault
# What wrappers of PyTorch put before the names, and the first tensor of each family.
PREFIXES = ("module.", "model.", "encoder.", "backbone.")
FIRST = ("cls_token", "conv1.weight", "conv_stem.weight", "stem.weight")
# The mean and deviation that images were normalised by, where a file wants others than ImageNet's.
CONSTANTS = {"imagenet": (IMAGENET_MEAN, IMAGENET_STD), "half": ((0.5,) * 3, (0.5,) * 3)}


@dataclasses.dataclass(frozen=True)
class Layout:
    """How an array of theirs becomes one of ours, and back."""

    inwards: Callable[[np.ndarray], np.ndarray]
    outwards: Callable[[np.ndarray], np.ndarray]


def _patch_inwards(kernel: np.ndarray) -> np.ndarray:
    """[D, 3, p, p] → [p p 3, D], in the order of `patches.patchify`."""
    return kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0])


def _patch_outwards(kernel: np.ndarray) -> np.ndarray:
    patch = math.isqrt(kernel.shape[0] // 3)
    return kernel.reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1)


SAME = Layout(lambda a: a, lambda a: a)
LINEAR = Layout(np.transpose, np.transpose)
CONV = Layout(lambda a: a.transpose(2, 3, 1, 0), lambda a: a.transpose(3, 2, 0, 1))
POINTWISE = Layout(lambda a: a[:, :, 0, 0].T, lambda a: a.T[:, :, None, None])
PATCH = Layout(_patch_inwards, _patch_outwards)
TABLE = Layout(lambda a: a[0], lambda a: a[None])

# Their name → the path of ours, and the layout.
Table = dict[str, tuple[str, Layout]]


def _weights(theirs: str, ours: str, layout: Layout) -> Table:
    """A layer with a bias."""
    return {
        f"{theirs}.weight": (f"params/{ours}/kernel", layout),
        f"{theirs}.bias": (f"params/{ours}/bias", SAME),
    }


def _layer_norm(theirs: str, ours: str) -> Table:
    return {
        f"{theirs}.weight": (f"params/{ours}/scale", SAME),
        f"{theirs}.bias": (f"params/{ours}/bias", SAME),
    }


def _normed_conv(conv: str, norm: str, ours: str, ours_norm: str) -> Table:
    """A convolution without bias, and the batch norm behind it."""
    return {
        f"{conv}.weight": (f"params/{ours}/kernel", CONV),
        **_layer_norm(norm, ours_norm),
        f"{norm}.running_mean": (f"batch_stats/{ours_norm}/mean", SAME),
        f"{norm}.running_var": (f"batch_stats/{ours_norm}/var", SAME),
    }


def vit_table(name: str, learned: bool) -> Table:
    """Every tensor of timm's `vit_*`; `pos_embed` only if ours are learned."""
    table: Table = {"cls_token": ("params/cls", SAME)}
    if learned:
        table["pos_embed"] = (POSITIONS, TABLE)
    table |= _weights("patch_embed.proj", "embed", PATCH) | _layer_norm("norm", "norm")
    for index in range(vit.parse(name).depth):
        theirs, ours = f"blocks.{index}.", f"blocks/block{index:02d}/"
        for norm in ("norm1", "norm2"):
            table |= _layer_norm(theirs + norm, ours + norm)
        for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            table |= _weights(theirs + layer, ours + layer.partition(".")[2], LINEAR)
    return table


def resnet_table(name: str) -> Table:
    """Every tensor of timm's (and torchvision's) `resnet*`."""
    model = resnet.make(name)
    table, channels = _normed_conv("conv1", "bn1", "stem", "stem_norm"), 64
    for stage, depth in enumerate(model.depths, 1):
        for block in range(depth):
            theirs, ours = f"layer{stage}.{block}.", f"stage{stage}_block{block}/"
            stride = 2 if stage > 1 and block == 0 else 1
            convs = resnet.branch(32 * 2**stage, stride, model.bottleneck)
            for i in range(1, len(convs) + 1):
                parts = f"{theirs}conv{i}", f"{theirs}bn{i}", f"{ours}conv{i}", f"{ours}norm{i}"
                table |= _normed_conv(*parts)
            if stride > 1 or channels != convs[-1][0]:
                shortcut = f"{theirs}downsample."
                parts = f"{shortcut}0", f"{shortcut}1", f"{ours}shortcut", f"{ours}shortcut_norm"
                table |= _normed_conv(*parts)
            channels = convs[-1][0]
    return table


def efficientnet_table(name: str) -> Table:
    """Every tensor of timm's `efficientnet_b*`."""
    model = efficientnet.make(name)
    table = _normed_conv("conv_stem", "bn1", "stem", "stem_norm")
    stages = efficientnet.stages_of(model.width, model.depth, model.small)
    for stage, blocks in enumerate(stages):
        for block, shape in enumerate(blocks):
            theirs, ours = f"blocks.{stage}.{block}.", f"stage{stage + 1}_block{block}/"
            # Without an expansion their block is another one, with names of its own.
            convs = {"conv_pw": "expand", "conv_dw": "depthwise", "conv_pwl": "project"}
            if shape.expansion == 1:
                convs = {"conv_dw": "depthwise", "conv_pw": "project"}
            for i, (conv, to) in enumerate(convs.items(), 1):
                parts = theirs + conv, f"{theirs}bn{i}", ours + to, f"{ours}{to}_norm"
                table |= _normed_conv(*parts)
            table |= _weights(f"{theirs}se.conv_reduce", f"{ours}gate/squeeze", POINTWISE)
            table |= _weights(f"{theirs}se.conv_expand", f"{ours}gate/excite", POINTWISE)
    return table | _normed_conv("conv_head", "bn2", "last", "last_norm")


def cnn_table(name: str) -> Table:
    """Every tensor of our `cnn*`, under our own names: no other program has them."""
    table: Table = {}
    for stage in range(cnn.STAGES):
        first = f"stage{stage + 1}_block0" if stage else "stem"
        table |= _normed_conv(first, f"{first}_norm", first, f"{first}_norm")
        for i in (1, 2):
            block = f"stage{stage + 1}_block1"
            parts = f"{block}.conv{i}", f"{block}.norm{i}", f"{block}/conv{i}", f"{block}/norm{i}"
            table |= _normed_conv(*parts)
    return table


def _table(name: str, learned: bool) -> Table:
    if vit.is_vit(name):
        return vit_table(name, learned)
    tables = dict.fromkeys(resnet.SIZES, resnet_table) | dict.fromkeys(cnn.SIZES, cnn_table)
    tables |= dict.fromkeys(efficientnet.SIZES, efficientnet_table)
    return lookup(tables, split_name(name)[0], "encoder")(name)


def load(
    path: Any,
    name: str,
    abstract: Mapping[str, Any],
    constants: str = "imagenet",
    positions: str = "sincos",
) -> tuple[dict[str, Any], list[str]]:
    """A safetensors file → variables of encoder `name`, and the names of the tensors left behind.

    constants: a key of CONSTANTS, by which the file wants its images normalised, where its own
    metadata (`mean`, `std`) do not say. Ours are ImageNet's: others are folded into the patch
    embedding of a ViT, exactly; a convolution that pads its images can't take them, and is refused.
    Prefixes such as `module.` are taken off. positions: which fixed ones a ViT has that has no
    learned ones; the file must have the same.

    `abstract` has the shapes of the encoder's variables, as `jax.eval_shape` of its init gives
    them. Returns nested dicts of float32 NumPy arrays of the same structure. Learned positions of
    another grid are interpolated as by timm's `resample_abs_pos_embed`: PyTorch's bicubic with
    antialias, that is Keys' kernel with a = -0.5, widened when it shrinks, over half-pixel centres
    and renormalised at the borders. Raises UserError that lists missing, extra and misshaped
    tensors and those with NaN or infinity, or if the file holds learned positions and the encoder
    has fixed ones.
    """
    ours = _unstacked({key: _hollow(leaf.shape) for key, leaf in _flat(abstract).items()})
    theirs, metadata = _read(path)
    theirs, beside = _without_prefix(path, theirs)
    table = _table(name, POSITIONS in ours)
    if "fc_norm.weight" in theirs and "norm.weight" not in theirs:
        raise UserError(
            f"{path} is a ViT that averages its patches before its last norm (fc_norm), as MAE's "
            "fine-tuning makes it, and ours norms before it averages: take MAE's pretraining file, "
            "or one fine-tuned with the cls token."
        )
    given = theirs.get("pos_embed") if vit.is_vit(name) else None
    if given is not None and POSITIONS in ours:
        theirs["pos_embed"] = _on_grid(given, ours)
    elif given is not None:
        del theirs["pos_embed"]
    left = sorted(beside | {key for key in theirs if key.startswith(LEFT)})
    faults = {
        "missing": [key for key in table if key not in theirs],
        "extra": sorted(theirs.keys() - table.keys() - set(left)),
        "misshaped": _misshaped(theirs, ours, table),
        "not finite": [k for k in table if k in theirs and not np.isfinite(theirs[k]).all()],
    }
    if any(faults.values()):
        raise UserError(
            f"{path} does not fit the encoder {name!r}: {_listed(faults)}; "
            "choose the encoder that the file was made for."
        )
    if given is not None and POSITIONS not in ours and not _is_fixed(given, positions):
        raise UserError(
            f"{path} holds positions other than the fixed ones, {positions!r}, in pos_embed; "
            'set model.positions="learned" to use them.'
        )
    found = {to: layout.inwards(theirs[key]) for key, (to, layout) in table.items()}
    _fold(path, found, _constants_of(metadata) or CONSTANTS[constants])
    return _nested(_restacked(found, _flat(abstract))), left


def _without_prefix(path: Any, theirs: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """The tensors of the encoder without what wrappers put before their names, and the others."""
    starts = {key.removesuffix(first) for key in theirs for first in FIRST if key.endswith(first)}
    wrapped = re.compile(f"({'|'.join(map(re.escape, PREFIXES))})*")
    known = sorted(start for start in starts if wrapped.fullmatch(start))
    if len(known) > 1:
        raise UserError(
            f"{path} holds several encoders, {' and '.join(map(repr, known))}; keep one."
        )
    prefix = known[0] if known else ""
    inside = {k.removeprefix(prefix): v for k, v in theirs.items() if k.startswith(prefix)}
    return inside, {key for key in theirs if not key.startswith(prefix)}


def _constants_of(metadata: Mapping[str, str]) -> Any:
    """Mean and deviation as a file's metadata tell them, or None."""
    if not {"mean", "std"} <= set(metadata):
        return None
    return tuple(tuple(map(float, metadata[key].split(","))) for key in ("mean", "std"))


def _fold(path: Any, found: dict[str, np.ndarray], constants: Any) -> None:
    """Lets the patch embedding read images normalised by our constants where it wants others.

    (x − m') / s' = ((x − m) / s) · s / s' + (m − m') / s': a scale of its kernel and a new bias.
    """
    (mean, std), (theirs_mean, theirs_std) = map(np.asarray, CONSTANTS["imagenet"]), constants
    theirs_mean, theirs_std = np.asarray(theirs_mean), np.asarray(theirs_std)
    if np.allclose(mean, theirs_mean, atol=1e-3) and np.allclose(std, theirs_std, atol=1e-3):
        return
    if "params/embed/kernel" not in found:
        raise UserError(
            f"{path} wants images normalised by mean {theirs_mean.tolist()} and deviation "
            f"{theirs_std.tolist()}, which a convolution that pads them cannot be given; take "
            "weights for ImageNet's."
        )
    kernel = found["params/embed/kernel"].astype(np.float64)
    patches = len(kernel) // 3  # [p p 3, D], the channel innermost
    shift = np.tile((mean - theirs_mean) / theirs_std, patches)
    scale = np.tile(std / theirs_std, patches)
    bias = found["params/embed/bias"] + shift @ kernel
    found["params/embed/kernel"] = (kernel * scale[:, None]).astype(np.float32)
    found["params/embed/bias"] = bias.astype(np.float32)


def about(
    name: str, image_size: int, pool: str, positions: str, outputs: int = 0
) -> dict[str, str]:
    """What a file says of its encoder: how to build it in timm, and how to feed it.

    outputs: of its head; 0: none.
    """
    known = {
        "encoder": name,
        "image_size": str(image_size),
        "mean": ",".join(map(str, IMAGENET_MEAN)),
        "std": ",".join(map(str, IMAGENET_STD)),
        "resize": RESIZE,
    }
    if not vit.is_vit(name):
        ours = "none: the network is ours" if name in cnn.SIZES else "none: its stem is ours"
        model = f"timm.create_model({name!r}, num_classes={outputs})"
        own = name in cnn.SIZES or name.endswith("-small")
        return known | {"pool": "mean", "timm": ours if own else model}
    size = vit.parse(name)
    model = (
        f"timm.models.VisionTransformer(img_size={image_size}, patch_size={size.patch}, "
        f"embed_dim={size.dim}, depth={size.depth}, num_heads={size.heads}, num_classes={outputs}, "
        f"global_pool={'token' if pool == 'cls' else 'avg'!r}, fc_norm=False)"
    )
    # fc_norm=False: the last norm comes before the mean, where timm's own default is behind it.
    return known | {"pool": pool, "fc_norm": "False", "positions": positions, "timm": model}


def save(
    path: Any,
    name: str,
    variables: Mapping[str, Any],
    *,
    image_size: int,
    positions: str = "sincos",
    head: Mapping[str, Any] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Variables of encoder `name` → a safetensors file that timm's `load_state_dict` takes.

    head: `kernel` [D, K] and `bias` [K] of a linear layer on the pooled feature. metadata: kept in
    the file, as `about` tells them.

    float32. timm's model must be one with so many outputs (`num_classes=K`; 0 without a head), of
    that `image_size`, which fixes the grid of a ViT's fixed `positions`: they are written as
    `pos_embed`, as timm knows no others. Raises UserError if the file cannot be written.
    """
    ours = _unstacked({key: np.asarray(leaf, np.float32) for key, leaf in _flat(variables).items()})
    table = _table(name, POSITIONS in ours)
    tensors = {key: layout.outwards(ours[to]) for key, (to, layout) in table.items()}
    if vit.is_vit(name) and "pos_embed" not in table:
        size = vit.parse(name)
        grid = vit.grid_of(image_size, size.patch)
        tensors["pos_embed"] = vit.with_cls(positions, grid, grid, size.dim)[None]
    if head is not None:
        called = "head" if vit.is_vit(name) else HEADS.get(split_name(name)[0][:6], "head")
        kernel, bias = (np.asarray(head[part], np.float32) for part in ("kernel", "bias"))
        tensors |= {f"{called}.weight": kernel.T, f"{called}.bias": bias}
    # Its writer takes memory as it lies, whatever the strides.
    tensors = {key: np.ascontiguousarray(tensor) for key, tensor in tensors.items()}
    try:
        safetensors.numpy.save_file(tensors, path, metadata={"format": "pt", **(metadata or {})})
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"Cannot write weights to {path} ({error}).") from error


def resampled(positions_1nd: np.ndarray, grid: int) -> np.ndarray:
    """`pos_embed` [1, 1 + n², D] → [1, 1 + grid², D]; the cls token's stays."""
    side, dim = math.isqrt(positions_1nd.shape[1] - 1), positions_1nd.shape[2]
    if side == grid:
        return positions_1nd
    square = jnp.asarray(positions_1nd[0, 1:].reshape(side, side, dim))
    resized = jax.image.resize(square, (grid, grid, dim), "cubic", antialias=True)
    return np.concatenate([positions_1nd[:, :1], np.asarray(resized).reshape(1, -1, dim)], axis=1)


def _is_table(positions: np.ndarray) -> bool:
    """Whether it is [1, 1 + n², D]."""
    if positions.ndim != 3 or positions.shape[0] != 1:
        return False
    patches = positions.shape[1] - 1
    return patches > 0 and math.isqrt(patches) ** 2 == patches


def _on_grid(positions: np.ndarray, ours: Mapping[str, Any]) -> np.ndarray:
    """`pos_embed` on our grid; what has no square one is left for the list of misshaped tensors."""
    fits = _is_table(positions) and positions.shape[2] == ours[POSITIONS].shape[1]
    return resampled(positions, math.isqrt(len(ours[POSITIONS]) - 1)) if fits else positions


def _is_fixed(given: np.ndarray, positions: str) -> bool:
    """Whether they are the fixed ones of their grid, by name."""
    if not _is_table(given):
        return False
    grid = math.isqrt(given.shape[1] - 1)
    fixed = vit.with_cls(positions, grid, grid, given.shape[2])[None]
    # A hundredth of the largest is more than rounding to bf16 takes them apart.
    return bool(np.abs(given - fixed).max() <= 0.01 * max(1.0, np.abs(fixed).max()))


def _misshaped(
    theirs: Mapping[str, np.ndarray], ours: Mapping[str, np.ndarray], table: Table
) -> list[str]:
    """What to tell of each tensor whose shape is not the one that ours would be written in."""
    wrong = []
    for key, (to, layout) in table.items():
        expected = layout.outwards(ours[to]).shape
        if key in theirs and theirs[key].shape != expected:
            wrong.append(f"{key} {theirs[key].shape} instead of {expected}")
    return wrong


def _read(path: Any) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The file's tensors in float32, without the counters of batches; and its metadata."""
    if not pathlib.Path(path).is_file():
        raise UserError(f"There is no file {path} to read an encoder from.")
    try:
        with safetensors.safe_open(path, framework="np") as file:
            keys = [key for key in file.keys() if not key.endswith("num_batches_tracked")]  # noqa: SIM118
            found = {key: np.asarray(file.get_tensor(key)).astype(np.float32) for key in keys}
            return found, file.metadata() or {}
    except (safetensors.SafetensorError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} cannot be read as safetensors ({error}); convert other formats first."
        ) from error


def _hollow(shape: tuple[int, ...]) -> np.ndarray:
    """Zeros that take no memory."""
    return np.broadcast_to(np.float32(0), shape)


def _flat(tree: Mapping[str, Any]) -> dict[str, Any]:
    return traverse_util.flatten_dict(dict(tree), sep="/")


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def plain_blocks(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Variables of a model with `scan` → of the same one without; others are what they were."""
    return _nested(_unstacked(_flat(variables)))


def _unstacked(flat: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Parameters of scanned blocks → of plain ones."""
    out = {}
    for key, leaf in flat.items():
        if "/scanned/" in key:
            for index, row in enumerate(leaf):
                out[key.replace("/scanned/", f"/block{index:02d}/")] = row
        else:
            out[key] = leaf
    return out


def _restacked(found: Mapping[str, np.ndarray], flat: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Parameters of plain blocks → those with the paths of `flat`."""
    out = {}
    for key, leaf in flat.items():
        if "/scanned/" in key:
            names = [f"/block{index:02d}/" for index in range(leaf.shape[0])]
            out[key] = np.stack([found[key.replace("/scanned/", name)] for name in names])
        else:
            out[key] = np.ascontiguousarray(found[key])
    return out


def _listed(faults: Mapping[str, Iterable[str]]) -> str:
    """`missing a, b; extra c`, each list cut after `SHOWN` names."""
    parts = []
    for kind, names in faults.items():
        names = list(names)
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        if names:
            parts.append(f"{kind} {', '.join(names[:SHOWN])}{more}")
    return "; ".join(parts)
