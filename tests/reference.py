"""The model and its losses once more: plain NumPy in float64, written from the papers' definitions.

ViT: Dosovitskiy 2021, with pre-norm blocks; positions, masking and decoder: He 2022 (MAE). Loops
stand where a definition has an index, so that no reshape can hide a wrong order. `params` are the
nested dicts of the model under test, as float64.
"""

import functools

import numpy as np
from scipy.special import erf


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def layer_norm(x, p):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-6) * p["scale"] + p["bias"]


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def attention(x_bnd, p, heads):
    dim = x_bnd.shape[-1]
    q, k, v = np.split(dense(x_bnd, p["qkv"]), 3, axis=-1)
    out = np.zeros_like(x_bnd)
    for head in range(heads):
        part = slice(head * dim // heads, (head + 1) * dim // heads)
        scores = q[..., part] @ k[..., part].swapaxes(-1, -2) / np.sqrt(dim // heads)
        out[..., part] = softmax(scores) @ v[..., part]
    return dense(out, p["proj"])


def block(x_bnd, p, heads):
    x_bnd = x_bnd + attention(layer_norm(x_bnd, p["norm1"]), p, heads)
    y = dense(layer_norm(x_bnd, p["norm2"]), p["fc1"])
    return x_bnd + dense(0.5 * y * (1 + erf(y / np.sqrt(2))), p["fc2"])


def blocks(x_bnd, p, heads):
    for name in sorted(p):
        x_bnd = block(x_bnd, p[name], heads)
    return x_bnd


@functools.cache
def sincos(grid_h, grid_w, dim):
    """Row after row of the grid; quarters of a code: sin and cos of the column, then of the row."""
    table = np.zeros((grid_h * grid_w, dim))
    for row in range(grid_h):
        for column in range(grid_w):
            for i in range(dim // 4):
                rate = 10000.0 ** (-i / (dim / 4))
                code = [np.sin(column * rate), np.cos(column * rate)]
                code += [np.sin(row * rate), np.cos(row * rate)]
                table[row * grid_w + column, i :: dim // 4] = code
    return table


def patches(images_bhwc, patch):
    """[B, N, patch * patch * C]: patches in raster order; pixels by row, column, channel."""
    images_bhwc = np.asarray(images_bhwc, np.float64)
    _, height, width, channels = images_bhwc.shape
    out = [
        [
            images_bhwc[:, top + y, left + x, c]
            for y in range(patch)
            for x in range(patch)
            for c in range(channels)
        ]
        for top in range(0, height, patch)
        for left in range(0, width, patch)
    ]
    return np.moveaxis(np.array(out), -1, 0)


def normalise(images_bhwc):
    return (images_bhwc - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]


def vit(params, patches_bnp, grid, heads, keep_bk=None):
    """Patches of normalised images → tokens after the last norm [B, 1 + N, D]."""
    dim = params["embed"]["kernel"].shape[1]
    x_bnd = dense(patches_bnp, params["embed"]) + sincos(*grid, dim)
    if keep_bk is not None:
        x_bnd = np.stack([[x_bnd[row, i] for i in keep] for row, keep in enumerate(keep_bk)])
    cls = np.broadcast_to(params["cls"], (len(x_bnd), 1, dim))  # its position is zero
    x_bnd = np.concatenate([cls, x_bnd], axis=1)
    return layer_norm(blocks(x_bnd, params["blocks"], heads), params["norm"])


def decode(params, tokens_bnd, keep_bk, grid, heads):
    """MAE's decoder → {name: predictions of every patch [B, grid * grid, values]}."""
    x_bnd = dense(tokens_bnd, params["embed"])
    dim = x_bnd.shape[-1]
    full = np.zeros((len(x_bnd), 1 + grid * grid, dim))
    full[:, 0] = x_bnd[:, 0]
    full[:, 1:] = params["mask_token"][0] + sincos(grid, grid, dim)
    for row, keep in enumerate(keep_bk):
        for place, patch_id in enumerate(keep):
            position = sincos(grid, grid, dim)[patch_id]
            full[row, 1 + patch_id] = x_bnd[row, 1 + place] + position
    x_bnd = layer_norm(blocks(full, params["blocks"], heads), params["norm"])[:, 1:]
    heads_of = {name: p for name, p in params.items() if name.startswith("predict_")}
    return {name.removeprefix("predict_"): dense(x_bnd, p) for name, p in heads_of.items()}


def masked_mse(prediction_bnp, target_bnp, keep_bk):
    """Mean over the values of a patch, then over the patches that are not kept; [B]."""
    losses = []
    for prediction, target, keep in zip(prediction_bnp, target_bnp, keep_bk, strict=True):
        hidden = sorted(set(range(len(target))) - set(keep.tolist()))
        losses.append(np.mean([np.mean((prediction[i] - target[i]) ** 2) for i in hidden]))
    return np.array(losses)


def cross_entropy(logits_c, label, smoothing=0.0, weights=None):
    """One example's: the weighted log likelihoods under a label smoothed over all classes."""
    classes = len(logits_c)
    log_p = np.log(softmax(logits_c))
    share = np.full(classes, smoothing / classes)
    share[label] += 1 - smoothing
    return -sum(share[c] * (weights[c] if weights else 1.0) * log_p[c] for c in range(classes))
