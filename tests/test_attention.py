"""Where a model looks: attention rollout of a ViT, Grad-CAM of a convolutional encoder."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hmtl_jax import infer
from hmtl_jax.errors import UserError
from tests import tiny


def program_of(**model):
    config = tiny.config()
    config.pretexts = type(config)()
    config.model.update(model)
    program = tiny.training(config).program
    return program, {**program.init_model(jax.random.key(0))}


IMAGES = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)


@pytest.mark.parametrize("scan", [False, True])
def test_rollout_is_the_product_of_the_blocks_means(scan):
    program, variables = program_of(scan=scan)
    (found,) = infer.attention_step(program, variables, {"image": IMAGES}).values()
    assert found.shape == (3, 4, 4) and found.dtype == jnp.float32
    np.testing.assert_allclose(found.max(axis=(1, 2)), 1, rtol=1e-6)
    # Again by hand, from the blocks' own queries and keys.
    seen = []

    def spy(q, k):
        scores = np.einsum("bnhd,bmhd->bhnm", q, k, dtype=np.float64) / q.shape[-1] ** 0.5
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        seen.append(weights / weights.sum(-1, keepdims=True))
        return jnp.asarray(seen[-1], jnp.float32)

    if scan:  # whose blocks are traced once
        plain, _ = program_of()
        layers = variables["params"]["encoder"]["blocks"]["scanned"]
        blocks = {
            f"block{at:02d}": jax.tree.map(lambda leaf, at=at: leaf[at], layers) for at in range(2)
        }
        encoder = variables["params"]["encoder"] | {"blocks": blocks}
        variables = {"params": variables["params"] | {"encoder": encoder}}
        program = plain
    from hmtl_jax.models import vit

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vit, "attention_weights", spy)
        infer.attention_step(program, variables, {"image": IMAGES})
    assert len(seen) == 2
    first, second = (0.5 * of.mean(1) + 0.5 * np.eye(17) for of in seen)
    rows = (second @ first)[:, 0, 1:].reshape(3, 4, 4)
    np.testing.assert_allclose(found, rows / rows.max((1, 2), keepdims=True), rtol=1e-4)


def test_grad_cam_is_the_heads_weights_on_the_last_map():
    """Behind a mean over places a linear head's slope is its weights: Zhou's CAM (2016)."""
    program, variables = program_of(encoder="cnn16")
    found = infer.attention_step(program, variables, {"image": IMAGES})["expression"]
    from hmtl_jax.data import augment

    images = augment.to_float(jnp.asarray(IMAGES), 16)
    stages = program.model.apply(variables, images, method="features")
    (kernel,) = [
        leaf for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"])
        if "heads_expression" in str(path) and "kernel" in str(path)
    ]  # fmt: skip
    logits = program.model.apply(variables, "expression", stages, method="answer")
    weights = np.asarray(kernel)[:, np.asarray(logits).argmax(1)]
    cam = np.maximum(np.einsum("bhwc,cb->bhw", np.asarray(stages["patches"]), weights), 0)
    np.testing.assert_allclose(found, cam / cam.max((1, 2), keepdims=True), atol=1e-5)
    assert found.shape == (3, *stages["patches"].shape[1:3])


def test_a_fused_model_has_no_one_place():
    program, variables = program_of()
    fused = dataclasses.replace(program, model=program.model.clone(fuse="mae"))
    with pytest.raises(UserError, match="fuses views"):
        infer.attention_step(fused, variables, {"image": IMAGES})
