"""Which patches of an image are hidden, and what an encoder is shown of the others."""

import jax
import jax.numpy as jnp

from hmtl_jax.errors import UserError
from hmtl_jax.images import paint
from hmtl_jax.patches import unpatchify
from hmtl_jax.view import View


def kept(patches: int, ratio: float) -> int:
    """How many of the patches a mask of that ratio leaves (MAE authors' code)."""
    return int(patches * (1 - ratio))


def draw(rngs_b: jax.Array, patches: int, keep: int) -> tuple[jax.Array, jax.Array]:
    """Each example's own mask: ids of the kept patches int32 [B, K], and 1 where hidden [B, N]."""
    noise_bn = jax.vmap(lambda key: jax.random.uniform(key, (patches,)))(rngs_b)
    order_bn = jnp.argsort(noise_bn, axis=1)
    hidden_bn = (jnp.argsort(order_bn, axis=1) >= keep).astype(jnp.float32)
    return order_bn[:, :keep], hidden_bn


def shown(
    images_bhwc: jax.Array, keep_bk: jax.Array, hidden_bn: jax.Array, patch: int, drops: bool
) -> View:
    """The view of an encoder that drops the hidden patches, or for which they are painted over."""
    if drops:
        return View(images_bhwc, keep_bk)
    grid = images_bhwc.shape[1] // patch
    return View(paint(images_bhwc, hidden_map(hidden_bn, patch, grid)))


def hidden_map(hidden_bn: jax.Array, patch: int, grid: int) -> jax.Array:
    """[B, N] by patch → [B, H, W, 1] by pixel."""
    return unpatchify(jnp.repeat(hidden_bn[:, :, None], patch**2, axis=2), patch, grid)


def check(key: str, image_size: int, patch: int, ratio: float) -> None:
    """Raises UserError unless whole patches make up the image, and some are hidden and some not."""
    if image_size % patch:
        raise UserError(
            f"{key} masks squares of {patch} pixels, which do not fit data.image_size "
            f"{image_size}; choose a multiple of {patch}."
        )
    patches = (image_size // patch) ** 2
    if patches == 1:
        raise UserError(
            f"{key}: one patch of {patch} pixels is the whole image, so nothing can be masked; "
            "choose a larger data.image_size, or an encoder of finer patches, such as one with "
            "'-small'."
        )
    if not 0 < kept(patches, ratio) < patches:
        raise UserError(
            f"{key}.mask_ratio {ratio} leaves {kept(patches, ratio)} of {patches} patches; choose "
            "a ratio that keeps some and hides some."
        )
