"""Masked auto-encoding (He 2022) as the auxiliary task (SSAT, arXiv 2310.20704).

A random quarter of the patches is seen; a light decoder rebuilds the others, as pixels or as maps
of local patterns (L-SSAT, arXiv 2409.19582), or as several of them together. A ViT reads the seen
patches alone, and with `stream="one_stream"` tasks read nothing else (SupMAE, arXiv 2205.14540).
For other encoders the masked ones are painted over, as in SimMIM (Xie 2022). That has a learnt mask
token and an absolute error; here it is the mean colour and MAE's squared error (ours).
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from hmtl_jax import limits, textures
from hmtl_jax.errors import UserError, lookup
from hmtl_jax.images import coloured, denormalise
from hmtl_jax.patches import patchify, unpatchify
from hmtl_jax.pretext import masking, skill
from hmtl_jax.textures import forms
from hmtl_jax.view import View

DECODERS = ("cells", "tokens")
LOSSES = ("classes", "mse")


@dataclasses.dataclass(frozen=True)
class Mae:
    """The pretext's settings, and its view, target and loss.

    patch: the unit of the mask: the encoder's patch, or the pixels that a cell of its last feature
    map covers. drops_tokens: whether the encoder can read a subset of the patches. mask_ratio:
    share of the patches that are masked. input: what the view shows, `rgb` or a texture.
    targets: what is rebuilt: `rgb` and textures, in the forms of textures/forms.py, as
    `lbp_bits_4`; L-SSAT rebuilds codes, `lbp`, of which little can be foreseen. target_weights: one
    a target (all 1 where empty); L-SSAT publishes none. norm_patch: normalise each target patch to
    mean 0 and variance 1 (off in SSAT). loss: `mse`, or `classes`: the codes of textures that have
    some are classified pixel by pixel (ours), and the other targets are rebuilt as with `mse`.
    decoder: `tokens` drops the masked patches, `cells` paints over them and predicts from each cell
    alone; empty: `tokens` where the encoder can. The dim, depth and heads are of `tokens`: SSAT's
    for Ti and S; for B, L and H it has 512, 8 and 16.
    """

    patch: int
    image_size: int
    drops_tokens: bool = True
    mask_ratio: float = 0.75
    input: str = "rgb"
    targets: tuple[str, ...] = ("rgb",)
    target_weights: tuple[float, ...] = ()
    norm_patch: bool = False
    loss: str = "mse"
    decoder: str = ""
    decoder_dim: int = 128
    decoder_depth: int = 2
    decoder_heads: int = 16

    FILLED: ClassVar = ("patch", "image_size", "drops_tokens")
    LIMITS: ClassVar = {
        "mask_ratio": limits.open_share("the part of the patches to mask"),
        "targets": limits.names("('lbp',)"),
        "target_weights": limits.weights(),
        "norm_patch": limits.flag(),
        "decoder_dim": limits.whole(1),
        "decoder_depth": limits.whole(1),
        "decoder_heads": limits.whole(1),
    }
    reads: ClassVar = "own"
    unlearned: ClassVar[str] = (
        "a target that can be foreseen, such as 'rgb' or 'lbp_bits_patch', "
        "model.positions='centred' for a ViT, a larger weight, or a longer run"
    )
    network: ClassVar = None  # in which losses compare features
    needs_average: ClassVar = False

    def __post_init__(self):
        limits.check("pretexts.mae.", vars(self), self.LIMITS)
        lookup(dict.fromkeys(LOSSES), self.loss, "pretexts.mae.loss")
        if self.decoder:
            lookup(dict.fromkeys(DECODERS), self.decoder, "pretexts.mae.decoder")
        masking.check("pretexts.mae", self.image_size, self.patch, self.mask_ratio)
        self._check_targets()
        self._check_decoder()

    @property
    def sizes_of_views(self) -> tuple[int, ...]:
        """Sides of what the encoder reads, in pixels."""
        return (self.image_size,)

    def classified(self, name: str) -> bool:
        """Whether the codes of a target are classified; else its values are rebuilt."""
        return self.loss == "classes" and self.form(name).codes is not None

    def form(self, name: str) -> forms.Target:
        """What a target's name means, for this patch."""
        return forms.parse(name, self.patch)

    @property
    def grid(self) -> int:
        return self.image_size // self.patch

    @property
    def num_patches(self) -> int:
        return self.grid**2

    @property
    def num_kept(self) -> int:
        return masking.kept(self.num_patches, self.mask_ratio)

    def decoder_spec(self) -> dict:
        """What models/decoders.py needs to build the decoder: its kind and its arguments."""
        outputs = tuple((name, *self.numbers(name), self._start(name)) for name in self.targets)
        if not self._drops:
            return {"kind": "cells", "grid": self.grid, "outputs": outputs}
        return {
            "kind": "tokens",
            "dim": self.decoder_dim,
            "depth": self.decoder_depth,
            "heads": self.decoder_heads,
            "grid": self.grid,
            "outputs": outputs,
        }

    @property
    def _drops(self) -> bool:
        return self.drops_tokens and self.decoder != "cells"

    def numbers(self, name: str) -> tuple[int, int]:
        """How many values a patch of this target has, and how many numbers predict each."""
        form = self.form(name)
        codes = form.codes if self.classified(name) else 1
        assert codes is not None
        return (self.patch // form.cell) ** 2 * form.channels, codes

    def _start(self, name: str) -> float:
        """What is predicted before anything is learned."""
        return 0.0 if self.norm_patch or self.classified(name) else self.form(name).mean

    def views(self, rngs_b: jax.Array, images_bhwc: jax.Array) -> tuple[tuple[View, dict], ...]:
        """Masks each image on its own.

        rngs_b: one key an example. images_bhwc: float32 [B, H, W, 3] in [0, 1]. Returns one view
        and its target: `hidden` float32 [B, N], 1 where a patch is masked, and for each name in
        `targets` its patches [B, N, patch² × channels], float32, or int32 classes.
        """
        keep_bk, hidden_bn = masking.draw(rngs_b, self.num_patches, self.num_kept)
        target = {"hidden": hidden_bn}
        for name in self.targets:
            # Written once: XLA would compute it anew in each operation of losses and skill.
            target[name] = jax.lax.optimization_barrier(self.target_patches(name, images_bhwc))
        shown = textures.as_input(self.input, images_bhwc)
        view = masking.shown(shown, keep_bk, hidden_bn, self.patch, self._drops)
        return ((view, target),)

    def target_patches(self, name: str, images_bhwc: jax.Array) -> jax.Array:
        """The patches to rebuild: normalised pixels for `rgb`, else a texture scaled to [0, 1]."""
        form = self.form(name)
        if self.classified(name):
            return patchify(textures.classes(form.texture, images_bhwc), self.patch)
        patches_bnp = patchify(form.maps(images_bhwc), self.patch // form.cell)
        if not self.norm_patch:
            return patches_bnp
        mean = jnp.mean(patches_bnp, axis=-1, keepdims=True)
        variance = jnp.var(patches_bnp, axis=-1, keepdims=True, ddof=1)
        return (patches_bnp - mean) / jnp.sqrt(variance + 1e-6)

    def losses(self, output: dict, target: dict, features) -> dict[str, jax.Array]:
        """Per-example loss over the masked patches only, float32 [B], by target.

        The mean over their values of the squared error, or over their pixels of the cross-entropy.
        """
        del features
        weights = self.target_weights or (1.0,) * len(self.targets)
        hidden_bn = target["hidden"]
        losses = {}
        for name, weight in zip(self.targets, weights, strict=True):
            predicted = output[name].astype(jnp.float32)
            if self.classified(name):
                error = cross_entropy(predicted, target[name])
            else:
                error = jnp.square(predicted - target[name])
            error_bn = jnp.mean(error, axis=-1)
            losses[name] = weight * jnp.sum(error_bn * hidden_bn, 1) / jnp.sum(hidden_bn, 1)
        return losses

    def skill(self, output: dict, target: dict, mask_b: jax.Array) -> dict[str, skill.Errors]:
        """By target, on the masked patches: against the mean of the place, or of all codes."""
        found, hidden_bn = {}, target["hidden"]
        for name in self.targets:
            predicted, wanted = output[name].astype(jnp.float32), target[name]
            if self.classified(name):
                error_bn = jnp.mean(cross_entropy(predicted, wanted), axis=-1)
                _, codes = self.numbers(name)
                found[name] = skill.of_codes(error_bn, wanted, codes, hidden_bn, mask_b)
            else:
                hidden = hidden_bn[:, :, None]
                found[name] = skill.of_values(predicted, wanted, hidden, mask_b)
        return found

    def columns(
        self, images: np.ndarray, view: View, target: Mapping, output: Mapping
    ) -> dict[str, np.ndarray]:
        """The picture's columns: input, what is seen of it, each target and its reconstruction.

        A reconstruction shows the prediction where patches were masked, and the truth elsewhere.
        """
        hidden = target["hidden"]
        masked = view.images * (1 - masking.hidden_map(hidden, self.patch, self.grid))
        found = {"input": images, "masked": np.asarray(masked)}
        for name in self.targets:
            truth, predicted = target[name], output[name]
            if self.classified(name):
                predicted = predicted.reshape(*truth.shape, -1).argmax(-1)
            rebuilt = np.where(hidden[:, :, None] > 0, predicted, truth)
            maps = (self._maps(name, patches) for patches in (truth, rebuilt))
            found[name], found[f"{name} rebuilt"] = coloured(*maps)
        return found

    def _maps(self, name: str, patches_bnp: np.ndarray) -> np.ndarray:
        """Patches of a target as maps of the picture's size, float32 [B, H, W, channels]."""
        form = self.form(name)
        if self.classified(name):
            codes = np.asarray(textures.TEXTURES[form.texture].values, np.float32)
            patches_bnp = codes[patches_bnp] / codes[-1]
        maps = unpatchify(jnp.asarray(patches_bnp), self.patch // form.cell, self.grid)
        if form.texture == forms.RGB and not self.norm_patch:
            maps = denormalise(maps)
        return np.asarray(jnp.repeat(jnp.repeat(maps, form.cell, axis=1), form.cell, axis=2))

    def _check_targets(self):
        targets, weights = self.targets, self.target_weights
        for name in targets:
            self.form(name)
        if len(set(targets)) != len(targets):
            raise UserError(f"pretexts.mae.targets {targets} names a target twice; name it once.")
        if weights and len(weights) != len(targets):
            raise UserError("pretexts.mae.target_weights needs one weight for each target.")
        classified = [name for name in targets if self.classified(name)]
        if self.loss == "classes" and not classified:
            raise UserError(
                "pretexts.mae.loss 'classes' needs a texture of discrete codes, and "
                f"{targets[0]!r} is continuous; set the loss to 'mse' or choose a target such as "
                "'lbp'."
            )
        if self.norm_patch and len(classified) == len(targets):
            raise UserError(
                "pretexts.mae.norm_patch has no meaning for targets that are classified; switch "
                "it off."
            )
        # Textures know which images they fit, and what can be shown as an image.
        image = jax.ShapeDtypeStruct((1, self.image_size, self.image_size, 3), jnp.float32)
        for name in targets:
            jax.eval_shape(lambda images, name=name: self.target_patches(name, images), image)
        jax.eval_shape(lambda images: textures.as_input(self.input, images), image)

    def _check_decoder(self):
        if self.decoder == "tokens" and not self.drops_tokens:
            raise UserError(
                "pretexts.mae.decoder 'tokens' needs an encoder that reads a subset of its "
                "patches, a ViT; set it to 'cells' or leave it empty."
            )
        if self._drops and self.decoder_dim % self.decoder_heads:
            raise UserError(
                f"pretexts.mae.decoder_heads {self.decoder_heads} must divide decoder_dim "
                f"{self.decoder_dim}."
            )


def cross_entropy(logits_bnq: jax.Array, classes_bnp: jax.Array) -> jax.Array:
    """float32 [B, N, P] of logits [B, N, P × classes], the classes of one pixel side by side."""
    logits = logits_bnq.reshape(*classes_bnp.shape, -1)
    log_p = jax.nn.log_softmax(logits, axis=-1)
    return -jnp.take_along_axis(log_p, classes_bnp[..., None], axis=-1)[..., 0]
