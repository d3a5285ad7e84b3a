"""MaskSub (Heo 2023, arXiv 2306.11339): a masked view is to say what the whole picture says.

Every classification task reads the masked view too; its answer is held against the one on the clean
view, from which no gradient comes. The paper averages both losses; with the weighting `fixed` they
are added, which is twice that.

With a `threshold` it is FixMatch's loss (Sohn 2020, arXiv 2001.07685, eq. 4) with the mask as the
strong augmentation: the surest answers count, as if they were labels, and the others not at all.
That is the form for few labels: an encoder that knows nothing yet is not asked to repeat itself.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from hmtl_jax import limits
from hmtl_jax.pretext import masking, skill
from hmtl_jax.view import View


@dataclasses.dataclass(frozen=True)
class MaskSub:
    """The pretext's settings, and its view and loss.

    patch, drops_tokens: of the encoder: a ViT drops the masked patches, for others they are painted
    over with the mean colour (ours). mask_ratio: share of the patches that are masked. threshold:
    0 to hold the masked view's answer against the clean one's distribution; above it, against the
    class that the clean view gives at least this probability, where there is one.
    """

    patch: int
    image_size: int
    drops_tokens: bool = True
    mask_ratio: float = 0.5
    threshold: float = 0.0

    FILLED: ClassVar = ("patch", "image_size", "drops_tokens")
    LIMITS: ClassVar = {
        "mask_ratio": limits.open_share("the part of the patches to mask"),
        "threshold": limits.share("a probability"),
    }
    reads: ClassVar = "heads"
    unlearned: ClassVar[str] = "a smaller mask_ratio, or a longer run"
    network: ClassVar = None  # in which losses compare features
    needs_average: ClassVar = False

    def __post_init__(self):
        limits.check("pretexts.masksub.", vars(self), self.LIMITS)
        masking.check("pretexts.masksub", self.image_size, self.patch, self.mask_ratio)

    @property
    def sizes_of_views(self) -> tuple[int, ...]:
        """Sides of what the encoder reads, in pixels."""
        return (self.image_size,)

    def decoder_spec(self) -> None:
        """It has no decoder: the tasks' heads answer."""

    def views(self, rngs_b: jax.Array, images_bhwc: jax.Array) -> tuple[tuple[View, dict], ...]:
        """Masks each image on its own.

        rngs_b: one key an example. images_bhwc: float32 [B, H, W, 3] in [0, 1]. Returns one view
        and `hidden` float32 [B, N], 1 where a patch is masked.
        """
        grid = self.image_size // self.patch
        keep_bk, hidden_bn = masking.draw(rngs_b, grid**2, masking.kept(grid**2, self.mask_ratio))
        view = masking.shown(images_bhwc, keep_bk, hidden_bn, self.patch, self.drops_tokens)
        return ((view, {"hidden": hidden_bn}),)

    def losses(self, output: Mapping, target: dict, features) -> dict[str, jax.Array]:
        """Cross-entropy against the clean view's distribution, float32 [B], by task.

        output: {task: (logits of the masked view, of the clean one), each [B, C]}.
        """
        del target, features
        return {
            task: jnp.sum(self._wanted(clean) * -jax.nn.log_softmax(masked), axis=-1)
            for task, (masked, clean) in _fixed(output).items()
        }

    def _wanted(self, clean_bc: jax.Array) -> jax.Array:
        """What the masked view is to say, from the clean one's logits; all 0 where it is unsure."""
        shares_bc = jax.nn.softmax(clean_bc)
        if not self.threshold:
            return shares_bc
        sure_b1 = jnp.max(shares_bc, axis=-1, keepdims=True) >= self.threshold
        label_bc = jax.nn.one_hot(jnp.argmax(shares_bc, axis=-1), shares_bc.shape[-1])
        return jnp.where(sure_b1, label_bc, 0.0)

    def skill(self, output: Mapping, target: dict, mask_b: jax.Array) -> dict[str, skill.Errors]:
        """By task: the divergence from the clean view's distribution, against that of its mean."""
        del target
        return {
            task: skill.of_distributions(jax.nn.log_softmax(masked), jax.nn.softmax(wanted), mask_b)
            for task, (masked, wanted) in _fixed(output).items()
        }

    def columns(
        self, images: np.ndarray, view: View, target: Mapping, output: Mapping
    ) -> dict[str, np.ndarray]:
        """The picture's columns: input, and what is seen of it."""
        del output
        grid = self.image_size // self.patch
        hidden = masking.hidden_map(target["hidden"], self.patch, grid)
        return {"input": images, "masked": np.asarray(view.images * (1 - hidden))}


def _fixed(output: Mapping) -> dict[str, tuple[jax.Array, jax.Array]]:
    return {
        task: (masked.astype(jnp.float32), jax.lax.stop_gradient(clean.astype(jnp.float32)))
        for task, (masked, clean) in output.items()
    }
