"""The hybrid model: one encoder for every view, a head a task, a decoder a pretext."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from hmtl_jax.data.augment import normalise
from hmtl_jax.pretext.view import View


class Hybrid(nn.Module):
    """Named views in, named outputs out.

    heads: a module a task. reads: for each task the view it reads. decoders: a module a pretext;
    each reads the view of its own name. Only the heads and decoders whose view is given run, so
    evaluation passes the clean view alone and never touches a decoder.
    """

    encoder: nn.Module
    heads: Mapping[str, nn.Module]
    decoders: Mapping[str, nn.Module]
    reads: Mapping[str, str]

    def __call__(self, views: Mapping[str, View], *, train: bool = False) -> dict[str, jax.Array]:
        stages = self.encode(views, train=train)
        outputs = {
            name: head(stages[self.reads[name]], train=train)
            for name, head in self.heads.items()
            if self.reads[name] in views
        }
        for name, decoder in self.decoders.items():
            if name in views:
                outputs[name] = decoder(stages[name], views[name], train=train)
        return outputs

    def encode(self, views: Mapping[str, View], *, train: bool = False) -> dict[str, dict]:
        """Named views → named stages; views of equal shape share one call of the encoder."""
        groups: dict[tuple, list[str]] = {}
        for name, view in views.items():
            kept = None if view.keep is None else view.keep.shape
            groups.setdefault((view.images.shape, kept), []).append(name)
        stages = {}
        for names in groups.values():
            joined = jax.tree.map(interleaved, *[views[name] for name in names])
            out = self.encoder(normalise(joined.images), joined.keep, train=train)
            parts = {k: v.reshape(-1, len(names), *v.shape[1:]) for k, v in out.items()}
            for index, name in enumerate(names):
                stages[name] = {key: part[:, index] for key, part in parts.items()}
        return stages


def interleaved(*rows_bx: jax.Array) -> jax.Array:
    """[B, …] n times → [n B, …]: the first rows, then the second ones, and so on.

    One after the other instead, each device would have to fetch the whole of a sharded batch.
    """
    return jnp.stack(rows_bx, axis=1).reshape(-1, *rows_bx[0].shape[1:])
