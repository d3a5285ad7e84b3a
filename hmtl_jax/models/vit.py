"""The Vision Transformer (Dosovitskiy 2021) as MAE uses it (He 2022): pre-norm, sin-cos positions.

The encoder can read a subset of its tokens, which is what makes masked auto-encoding cheap: a view
that keeps a quarter of the patches costs about a quarter of a full pass.
"""

import dataclasses
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hmtl_jax.errors import UserError, lookup
from hmtl_jax.models import stems
from hmtl_jax.models.conv import check_whole
from hmtl_jax.models.layers import (
    ATTENTION,
    Dense,
    DropPath,
    LayerNorm,
    attention_weights,
    gelu,
)
from hmtl_jax.patches import patchify

# Width, depth, heads of the published models (SSAT and MAE authors' code); MLP ratio is 4.
SIZES = {
    "Ti": (192, 12, 3),
    "S": (384, 12, 6),
    "B": (768, 12, 12),
    "L": (1024, 24, 16),
    "H": (1280, 32, 16),
}


def sincos_positions(grid_h: int, grid_w: int, dim: int) -> np.ndarray:
    """Fixed 2-D sin-cos position embedding, float32 [grid_h * grid_w, dim] (MAE authors' code).

    The first half of `dim` codes the column, the second the row, each as sines then cosines of
    position / 10000^(i / (dim/4)).
    """
    if dim % 4:
        raise UserError(f"Sin-cos positions need a width divisible by 4, not {dim}.")
    omega = 1.0 / 10000 ** (np.arange(dim // 4, dtype=np.float64) / (dim / 4.0))
    rows, columns = np.meshgrid(np.arange(grid_h), np.arange(grid_w), indexing="ij")

    def code(position: np.ndarray) -> np.ndarray:
        angle = position.reshape(-1, 1) * omega[None, :]
        return np.concatenate([np.sin(angle), np.cos(angle)], axis=1)

    return np.concatenate([code(columns), code(rows)], axis=1).astype(np.float32)


def centred_positions(grid_h: int, grid_w: int, dim: int) -> np.ndarray:
    """sincos_positions less their mean over the grid, at their old root mean square (ours).

    float32 [grid_h * grid_w, dim]; zeros for a grid of one place. On a 6 x 6 grid 89 % of the
    energy of MAE's table is a vector that all places share, and what tells them apart is a tenth of
    a token's content; here it is as large.
    """
    table = sincos_positions(grid_h, grid_w, dim).astype(np.float64)
    centred = table - table.mean(0)
    energy = np.square(centred).mean()
    scale = np.sqrt(np.square(table).mean() / energy) if len(table) > 1 else 0.0
    return (centred * scale).astype(np.float32)


# Those that are computed for any grid; `learned` ones are parameters.
FIXED = {"sincos": sincos_positions, "centred": centred_positions}


def with_cls(positions: str, grid_h: int, grid_w: int, dim: int) -> np.ndarray:
    """Fixed positions below a row of zeros for the cls token: float32 [1 + grid_h grid_w, dim]."""
    table = FIXED[positions](grid_h, grid_w, dim)
    return np.concatenate([np.zeros((1, dim), np.float32), table])


def grid_of(image_size: int, patch: int) -> int:
    """Patches along one side of a square image; raises UserError if they don't fit."""
    if image_size % patch:
        fitting = [p for p in range(4, 33) if image_size % p == 0]
        raise UserError(
            f"model.encoder: patch {patch} does not divide the image size {image_size}; choose "
            f"data.image_size {max(1, round(image_size / patch)) * patch}"
            f"{f', or a patch among {fitting}' if fitting else ''}."
        )
    return image_size // patch


class Block(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    dim: int
    heads: int
    mlp_ratio: int = 4
    drop_path: float = 0.0
    attention: str = "plain"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_bnd: jax.Array, train: bool) -> jax.Array:
        drop = DropPath(self.drop_path)
        y = LayerNorm(self.dtype, name="norm1")(x_bnd)
        qkv = Dense(3 * self.dim, self.dtype, name="qkv")(y)
        qkv = qkv.reshape(*qkv.shape[:2], 3, self.heads, self.dim // self.heads)
        if self.is_mutable_collection("intermediates"):  # only where someone asks to see them
            self.sow("intermediates", "weights", attention_weights(qkv[:, :, 0], qkv[:, :, 1]))
        y = ATTENTION[self.attention](qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2])
        y = y.reshape(x_bnd.shape)
        x_bnd = x_bnd + drop(Dense(self.dim, self.dtype, name="proj")(y), train=train)
        y = LayerNorm(self.dtype, name="norm2")(x_bnd)
        y = gelu(Dense(self.mlp_ratio * self.dim, self.dtype, name="fc1")(y))
        return x_bnd + drop(Dense(self.dim, self.dtype, name="fc2")(y), train=train)


class Blocks(nn.Module):
    """A stack of blocks; drop path grows linearly with depth when blocks are not scanned.

    `scan` compiles one block and loops over stacked parameters: compile time no longer grows with
    depth. `remat` recomputes activations in the backward pass instead of keeping them. attention: a
    key of layers.ATTENTION.
    """

    depth: int
    dim: int
    heads: int
    mlp_ratio: int = 4
    drop_path: float = 0.0
    scan: bool = False
    remat: bool = False
    attention: str = "plain"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x_bnd: jax.Array, train: bool) -> tuple[jax.Array, list[jax.Array]]:
        block = nn.remat(Block, static_argnums=(2,)) if self.remat else Block
        shape: dict[str, Any] = {
            "dim": self.dim, "heads": self.heads, "mlp_ratio": self.mlp_ratio,
            "attention": self.attention, "dtype": self.dtype,
        }  # fmt: skip
        if self.scan:

            def body(module, x, _):
                x = module(x, train)
                return x, x

            scanned = nn.scan(
                body,
                variable_axes={"params": 0, "intermediates": 0},
                split_rngs={"params": True, "dropout": True},
                length=self.depth,
            )
            # One compiled block has one rate, so every scanned block drops at the mean rate.
            layer = block(**shape, drop_path=self.drop_path / 2, name="scanned")
            x_bnd, stages_lbnd = scanned(layer, x_bnd, None)
            return x_bnd, [stages_lbnd[index] for index in range(self.depth)]
        stages = []
        for index in range(self.depth):
            rate = self.drop_path * index / max(self.depth - 1, 1)
            x_bnd = block(**shape, drop_path=rate, name=f"block{index:02d}")(x_bnd, train)
            stages.append(x_bnd)
        return x_bnd, stages


class ViT(nn.Module):
    """Images [B, H, W, 3] (normalised) and, optionally, ids of kept patches → named stages.

    Returns a dict of float arrays: `tokens` [B, 1 + N, D] after the last norm (cls first), `pooled`
    [B, D] float32, `patches` [B, grid, grid, D] when no patch was dropped, and `block00` … the
    output of each block. With `keep_bk` int32 [B, K], N = K patches, in the order of the ids;
    with a stem that mixes patches none can be dropped, which raises UserError.
    """

    patch: int
    dim: int
    depth: int
    heads: int
    pool: str = "cls"
    positions: str = "sincos"
    stem: str = "patch"
    drop_path: float = 0.0
    scan: bool = False
    remat: bool = False
    attention: str = "plain"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, images_bhwc: jax.Array, keep_bk: jax.Array | None = None, *, train: bool = False
    ) -> dict[str, jax.Array]:
        grid_h, grid_w = (grid_of(side, self.patch) for side in images_bhwc.shape[1:3])
        positions_nd = self.position_table(grid_h, grid_w)
        positions_bnd = positions_nd[None, 1:] if keep_bk is None else positions_nd[1:][keep_bk]
        x_bnd = self.embedded(images_bhwc, keep_bk, train) + positions_bnd.astype(self.dtype)
        cls = self.param("cls", nn.initializers.normal(0.02), (1, 1, self.dim), jnp.float32)
        cls_b1d = jnp.tile(cls + positions_nd[None, :1], (x_bnd.shape[0], 1, 1))
        x_bnd = jnp.concatenate([cls_b1d.astype(self.dtype), x_bnd], axis=1)
        x_bnd, blocks = Blocks(
            depth=self.depth, dim=self.dim, heads=self.heads, drop_path=self.drop_path,
            scan=self.scan, remat=self.remat, attention=self.attention, dtype=self.dtype,
            name="blocks",
        )(x_bnd, train)  # fmt: skip
        tokens_bnd = LayerNorm(self.dtype, name="norm")(x_bnd)
        stages = {f"block{index:02d}": block for index, block in enumerate(blocks)}
        stages |= {"tokens": tokens_bnd, "pooled": pooled(tokens_bnd, self.pool)}
        if keep_bk is None:
            stages["patches"] = tokens_bnd[:, 1:].reshape(-1, grid_h, grid_w, self.dim)
        return stages

    def embedded(self, images_bhwc: jax.Array, keep_bk: jax.Array | None, train: bool) -> jax.Array:
        """The tokens of the kept patches before positions are added, [B, N, D]."""
        stem = stems.STEMS[self.stem]
        module = stem.make(self.patch, self.dim, self.dtype)
        if stem.mixes:
            check_whole(keep_bk)
            return module(images_bhwc, train=train)
        patches_bnp = patchify(images_bhwc, self.patch)
        if keep_bk is not None:
            # Dropping patches before the embedding saves its work on them too.
            patches_bnp = jnp.take_along_axis(patches_bnp, keep_bk[:, :, None], axis=1)
        return module(patches_bnp)

    def position_table(self, grid_h: int, grid_w: int) -> jax.Array:
        """float32 [1 + grid_h * grid_w, D]; the first row is the cls token's."""
        if self.positions == "learned":
            shape = (1 + grid_h * grid_w, self.dim)
            return self.param("positions_table", nn.initializers.normal(0.02), shape, jnp.float32)
        return jnp.asarray(with_cls(self.positions, grid_h, grid_w, self.dim))


def pooled(tokens_bnd: jax.Array, pool: str) -> jax.Array:
    """One f32 feature per image: the cls token, or the mean of the patch tokens."""
    tokens_bnd = tokens_bnd.astype(jnp.float32)
    return tokens_bnd[:, 0] if pool == "cls" else jnp.mean(tokens_bnd[:, 1:], axis=1)


@dataclasses.dataclass(frozen=True)
class Size:
    """A parsed encoder string: `"S/16"`, or `"192x6x3/8"` for width x depth x heads / patch."""

    patch: int
    dim: int
    depth: int
    heads: int


def is_vit(name: str) -> bool:
    """Whether a `model.encoder` is one of these: they alone say their patch."""
    return "/" in name


def parse(name: str) -> Size:
    """`"Ti/16"` … `"H/14"` or `"DIMxDEPTHxHEADS/PATCH"` → Size; raises UserError otherwise."""
    size, slash, patch = name.partition("/")
    if not slash or not patch.isdigit() or int(patch) == 0:
        raise UserError(f"model.encoder {name!r} lacks its patch; write it as 'S/16'.")
    custom = re.fullmatch(r"(\d+)x(\d+)x(\d+)", size)
    dim, depth, heads = map(int, custom.groups()) if custom else lookup(SIZES, size, "encoder")
    if 0 in (dim, depth, heads) or dim % heads or dim % 4:
        raise UserError(
            f"model.encoder {name!r}: width, depth and heads must be above 0, and the width "
            "divisible by its heads and by 4."
        )
    return Size(int(patch), dim, depth, heads)
