"""Masked auto-encoding (He 2022) as the auxiliary task (SSAT, arXiv 2310.20704).

A random quarter of the patches enters the encoder; a light decoder rebuilds the others, as pixels
or as maps of local patterns (arXiv 2409.19582), or as several of them together.
"""

import dataclasses

import jax
import jax.numpy as jnp

from hmtl_jax import textures
from hmtl_jax.data.augment import normalise
from hmtl_jax.errors import UserError, lookup
from hmtl_jax.patches import patchify
from hmtl_jax.pretext.view import View


@dataclasses.dataclass(frozen=True)
class Mae:
    """The pretext's settings, and its view, target and loss.

    targets: what is rebuilt: `rgb` and names of textures. target_weights: one a target (all 1
    where empty); L-SSAT publishes none. norm_patch: normalise each target patch to mean 0 and
    variance 1 (off in SSAT). mask_ratio: share of the patches that the encoder does not read.
    """

    patch: int
    image_size: int
    mask_ratio: float = 0.75
    targets: tuple[str, ...] = ("rgb",)
    target_weights: tuple[float, ...] = ()
    norm_patch: bool = False
    decoder: str = "tokens"
    decoder_dim: int = 128
    decoder_depth: int = 2
    decoder_heads: int = 16

    def __post_init__(self):
        if not self.targets or isinstance(self.targets, str):
            raise UserError(
                f"pretexts.mae.targets is {self.targets!r}; give a tuple of 'rgb' and names of "
                "textures, such as ('lbp',)."
            )
        if not 0.0 < self.mask_ratio < 1.0 or not 0 < self.num_kept < self.num_patches:
            raise UserError(
                f"pretexts.mae.mask_ratio {self.mask_ratio} leaves {self.num_kept} of "
                f"{self.num_patches} patches; choose a ratio that keeps some and hides some."
            )
        for name in self.targets:
            lookup({"rgb": None, **textures.TEXTURES}, name, "texture")
        if self.target_weights and len(self.target_weights) != len(self.targets):
            raise UserError("pretexts.mae.target_weights needs one weight for each target.")

    @property
    def num_patches(self) -> int:
        return (self.image_size // self.patch) ** 2

    @property
    def num_kept(self) -> int:
        return int(self.num_patches * (1 - self.mask_ratio))

    def decoder_spec(self) -> dict:
        """What models/decoders.py needs to build the decoder: its kind and its arguments."""
        channels = {"rgb": 3} | {name: made.channels for name, made in textures.TEXTURES.items()}
        outputs = {name: self.patch**2 * channels[name] for name in self.targets}
        return {
            "kind": self.decoder,
            "dim": self.decoder_dim,
            "depth": self.decoder_depth,
            "heads": self.decoder_heads,
            "grid": self.image_size // self.patch,
            "outputs": tuple(outputs.items()),
        }

    def view(self, rngs_b: jax.Array, images_bhwc: jax.Array) -> tuple[View, dict]:
        """Masks each image on its own.

        rngs_b: one key an example. images_bhwc: float32 [B, H, W, 3] in [0, 1]. Returns the view
        and the target: `hidden` float32 [B, N], 1 where a patch is masked, and for each name in
        `targets` its patches, float32 [B, N, patch² × channels].
        """
        noise_bn = jax.vmap(lambda key: jax.random.uniform(key, (self.num_patches,)))(rngs_b)
        order_bn = jnp.argsort(noise_bn, axis=1)
        keep_bk = order_bn[:, : self.num_kept]
        hidden_bn = (jnp.argsort(order_bn, axis=1) >= self.num_kept).astype(jnp.float32)
        target = {"hidden": hidden_bn}
        for name in self.targets:
            target[name] = self.target_patches(name, images_bhwc)
        return View(images_bhwc, keep_bk), target

    def target_patches(self, name: str, images_bhwc: jax.Array) -> jax.Array:
        """The patches to rebuild: normalised pixels for `rgb`, else a texture scaled to [0, 1]."""
        maps = normalise(images_bhwc) if name == "rgb" else textures.target(name, images_bhwc)
        patches_bnp = patchify(maps, self.patch)
        if not self.norm_patch:
            return patches_bnp
        mean = jnp.mean(patches_bnp, axis=-1, keepdims=True)
        variance = jnp.var(patches_bnp, axis=-1, keepdims=True, ddof=1)
        return (patches_bnp - mean) / jnp.sqrt(variance + 1e-6)

    def losses(self, outputs: dict, target: dict) -> dict[str, jax.Array]:
        """Per-example mean squared error over the masked patches only, float32 [B], by target."""
        weights = self.target_weights or (1.0,) * len(self.targets)
        hidden_bn = target["hidden"]
        losses = {}
        for name, weight in zip(self.targets, weights, strict=True):
            error = jnp.square(outputs[name].astype(jnp.float32) - target[name])
            error_bn = jnp.mean(error, axis=-1)
            losses[name] = weight * jnp.sum(error_bn * hidden_bn, 1) / jnp.sum(hidden_bn, 1)
        return losses
