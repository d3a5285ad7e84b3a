"""Encoders keep every weight through a file, and compute what PyTorch computes from it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from flax import traverse_util

from hmtl_jax import images as images_module
from hmtl_jax.errors import UserError
from hmtl_jax.models import efficientnet, encoders, pretrained, resnet, vit
from hmtl_jax.patches import patchify
from tests import tiny

VIT = "16x3x2/4"
CONVOLUTIONAL = [*resnet.SIZES, *efficientnet.SIZES]


def make(name, **settings):
    if "/" in name:
        size = vit.parse(name)
        return vit.ViT(size.patch, size.dim, size.depth, size.heads, **settings)
    return encoders.CONVOLUTIONAL[name.removesuffix("-small")].make(name)


def abstract_of(model, size=32):
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), images)


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def assert_equal(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def positive(path, leaf):
    """Variances above zero."""
    return jnp.abs(leaf) + 0.5 if path[-1].key == "var" else leaf


@pytest.fixture
def saved(tmp_path):
    """`saved(name, **settings)` → (path, model, abstract, variables) of random weights, written."""

    def write(name, image_size=16, **settings):
        model = make(name, **settings)
        abstract = abstract_of(model, image_size)
        variables = jax.tree_util.tree_map_with_path(positive, tiny.random_like(abstract))
        path = tmp_path / "encoder.safetensors"
        positions = settings.get("positions", "sincos")
        pretrained.save(path, name, variables, image_size=image_size, positions=positions)
        return path, model, abstract, variables

    return write


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        (VIT, {}),
        (VIT, {"positions": "learned"}),
        (VIT, {"scan": True}),
        (VIT, {"positions": "centred"}),
        ("cnn24", {}),
        ("resnet18-small", {}),
        ("resnet50", {"image_size": 32}),
        ("efficientnet_b0", {"image_size": 32}),
    ],
)
def test_a_round_trip_is_exact(saved, name, settings):
    path, _, abstract, variables = saved(name, **settings)
    positions = settings.get("positions", "sincos")
    found, left = pretrained.load(path, name, abstract, positions=positions)
    assert left == []
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float32)}
    assert_equal(found, variables)


@pytest.mark.parametrize("name", [VIT, *CONVOLUTIONAL, "resnet18-small", "efficientnet_b0-small"])
def test_every_variable_has_a_tensor_of_another_name(name):
    table = pretrained._table(name, learned=False)
    paths = [path for path, _ in table.values()]
    assert sorted(paths) == sorted(flat(abstract_of(make(name))))


@pytest.mark.parametrize(
    ("name", "published"),
    [
        (
            VIT,
            {
                "pos_embed": (1, 17, 16),
                "patch_embed.proj.weight": (16, 3, 4, 4),
                "blocks.2.attn.qkv.weight": (48, 16),
                "blocks.0.mlp.fc2.bias": (16,),
            },
        ),
        (
            "resnet18",
            {
                "conv1.weight": (64, 3, 7, 7),
                "layer2.0.downsample.0.weight": (128, 64, 1, 1),
                "layer4.1.bn2.running_var": (512,),
            },
        ),
        (
            "efficientnet_b0",
            {
                "conv_stem.weight": (32, 3, 3, 3),
                "blocks.0.0.conv_pw.weight": (16, 32, 1, 1),
                "blocks.1.0.se.conv_reduce.weight": (4, 96, 1, 1),
                "blocks.6.0.bn3.running_mean": (320,),
                "conv_head.weight": (1280, 320, 1, 1),
            },
        ),
    ],
)
def test_tensors_have_the_names_and_shapes_of_timm(saved, name, published):
    path, *_ = saved(name, image_size=16 if name == VIT else 32)
    with safetensors.safe_open(path, framework="np") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in published}
    assert shapes == published


def test_scanned_and_plain_blocks_write_the_same_file(saved):
    path, _, _, variables = saved(VIT, scan=True)
    scanned = path.read_bytes()
    plain, _ = pretrained.load(path, VIT, abstract_of(make(VIT), 16))
    stacked = variables["params"]["blocks"]["scanned"]
    assert_equal(plain["params"]["blocks"]["block02"], jax.tree.map(lambda a: a[2], stacked))
    pretrained.save(path, VIT, plain, image_size=16)
    assert path.read_bytes() == scanned


def test_the_patch_embedding_is_the_convolution_of_its_file():
    rng = np.random.default_rng(0)
    images, kernel = rng.normal(size=(2, 8, 12, 3)), rng.normal(size=(5, 3, 4, 4))
    blocks = images.reshape(2, 2, 4, 3, 4, 3)  # row, in it, column, in it, colour
    slow = np.einsum("brpsqc,dcpq->brsd", blocks, kernel).reshape(2, 6, 5)
    ours = pretrained.PATCH.inwards(kernel)
    np.testing.assert_allclose(np.asarray(patchify(images, 4)) @ ours, slow, atol=1e-10)
    np.testing.assert_array_equal(pretrained.PATCH.outwards(ours), kernel)


def keys_kernel(x):
    """Keys' cubic with a = -0.5."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    return np.where(x <= 1, near, np.where(x < 2, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2, 0))


def resized(line_nd, count):
    """Along the first axis: a weight a pixel, by definition."""
    old = len(line_nd)
    wide = max(old / count, 1)
    out = []
    for index in range(count):
        centre = (index + 0.5) * old / count - 0.5
        weights = keys_kernel((np.arange(old) - centre) / wide)
        out.append(np.tensordot(weights / weights.sum(), line_nd, 1))
    return np.stack(out)


@pytest.mark.parametrize(("old", "new"), [(14, 8), (4, 7), (3, 6), (6, 2)])
def test_positions_are_resampled_by_an_antialiased_bicubic(old, new):
    table = np.random.default_rng(0).normal(size=(1, 1 + old**2, 4)).astype(np.float32)
    found = pretrained.resampled(table, new)
    square = resized(table[0, 1:].reshape(old, old, 4).astype(np.float64), new)
    square = resized(square.swapaxes(0, 1), new).swapaxes(0, 1)
    np.testing.assert_allclose(found[0, 1:], square.reshape(-1, 4), atol=2e-6)
    np.testing.assert_array_equal(found[:, 0], table[:, 0])


def test_learned_positions_of_another_grid_are_resampled_on_loading(saved):
    path, _, _, variables = saved(VIT, positions="learned")
    larger = abstract_of(make(VIT, positions="learned"), 24)
    found, _ = pretrained.load(path, VIT, larger)
    table = np.asarray(variables["params"]["positions_table"])[None]
    np.testing.assert_array_equal(
        found["params"]["positions_table"], pretrained.resampled(table, 6)[0]
    )


def rewritten(path, change):
    """The file once more after `change(tensors)`."""
    tensors = safetensors.numpy.load_file(path)
    change(tensors)
    safetensors.numpy.save_file(tensors, path)


def test_heads_and_a_decoder_are_left_and_named(saved):
    path, _, abstract, variables = saved(VIT)
    names = ("head.weight", "decoder_blocks.0.norm1.bias", "mask_token", "fc_norm.weight")
    rewritten(path, lambda tensors: tensors.update(dict.fromkeys(names, np.zeros(3, np.float32))))
    found, left = pretrained.load(path, VIT, abstract)
    assert left == sorted(names)
    assert_equal(found, variables)


def renamed(tensors, rename):
    changed = {rename(key): tensor for key, tensor in tensors.items()}
    tensors.clear()
    tensors.update(changed)


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.encoder.", "backbone."])
@pytest.mark.parametrize("name", [VIT, "resnet18-small"])
def test_what_wrappers_put_before_names_is_taken_off(saved, prefix, name):
    path, _, abstract, variables = saved(name)
    rewritten(path, lambda tensors: renamed(tensors, lambda key: prefix + key))
    rewritten(path, lambda tensors: tensors.update({"projector.weight": np.zeros(3, np.float32)}))
    found, left = pretrained.load(path, name, abstract)
    assert left == ["projector.weight"]
    assert_equal(found, variables)


def test_a_file_of_several_encoders_is_refused(saved):
    path, _, abstract, _ = saved(VIT)

    def twice(tensors):
        tensors.update({f"encoder.{key}": tensor for key, tensor in tensors.items()})

    rewritten(path, twice)
    with pytest.raises(UserError, match=r"holds several encoders, '' and 'encoder\.'"):
        pretrained.load(path, VIT, abstract)


def test_a_file_whose_patches_are_averaged_before_the_norm_is_told_of(saved):
    path, _, abstract, _ = saved(VIT)
    rewritten(path, lambda tensors: renamed(tensors, lambda key: key.replace("norm.", "fc_norm.")
                                            if key.startswith("norm.") else key))  # fmt: skip
    with pytest.raises(UserError, match=r"averages its patches before its last norm .* take MAE's"):
        pretrained.load(path, VIT, abstract)


@pytest.mark.parametrize("said_by", ["key", "file"])
def test_other_constants_are_folded_into_the_patch_embedding(saved, said_by):
    path, model, abstract, variables = saved(VIT)
    constants = "half"
    if said_by == "file":
        tensors = safetensors.numpy.load_file(path)
        metadata = {"mean": "0.5,0.5,0.5", "std": "0.5,0.5,0.5"}
        safetensors.numpy.save_file(tensors, path, metadata=metadata)
        constants = "imagenet"
    found, _ = pretrained.load(path, VIT, abstract, constants)
    images = jnp.asarray(np.random.default_rng(0).random((2, 16, 16, 3)), jnp.float32)
    ours = model.apply(found, images_module.normalise(images), train=False)["pooled"]
    theirs = model.apply(variables, (images - 0.5) / 0.5, train=False)["pooled"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)
    plain = model.apply(variables, images_module.normalise(images), train=False)["pooled"]
    assert np.abs(plain - theirs).max() > 0.1


def test_a_convolution_that_pads_its_images_refuses_other_constants(saved):
    path, _, abstract, _ = saved("resnet18-small")
    with pytest.raises(UserError, match=r"mean \[0\.5, 0\.5, 0\.5\] .* cannot be given"):
        pretrained.load(path, "resnet18-small", abstract, "half")


@pytest.mark.parametrize(
    ("name", "pool", "wanted"),
    [
        ("S/16", "cls", "patch_size=16, embed_dim=384, depth=12, num_heads=6, num_classes=0, "
         "global_pool='token', fc_norm=False)"),
        ("192x6x3/8", "mean", "patch_size=8, embed_dim=192, depth=6, num_heads=3, num_classes=0, "
         "global_pool='avg', fc_norm=False)"),
        ("resnet50", "cls", "timm.create_model('resnet50', num_classes=0)"),
    ],
)  # fmt: skip
def test_a_file_says_how_to_build_and_feed_its_encoder(saved, name, pool, wanted):
    path, _, _, variables = saved(VIT)
    metadata = pretrained.about(name, 64, pool, "sincos")
    pretrained.save(path, VIT, variables, image_size=16, metadata=metadata)
    with safetensors.safe_open(path, framework="np") as file:
        kept = file.metadata()
    assert kept["timm"].endswith(wanted) and kept["image_size"] == "64"
    assert (kept["mean"], kept["std"]) == ("0.485,0.456,0.406", "0.229,0.224,0.225")


def test_counters_of_batches_are_passed_over(saved):
    path, _, abstract, variables = saved("resnet18-small")
    rewritten(path, lambda tensors: tensors.update({"bn1.num_batches_tracked": np.array(7)}))
    found, left = pretrained.load(path, "resnet18-small", abstract)
    assert left == []
    assert_equal(found["batch_stats"], variables["batch_stats"])


@pytest.mark.parametrize("dtype", [np.float16, jnp.bfloat16])
def test_half_precision_is_read_as_it_is(saved, dtype):
    path, _, abstract, variables = saved(VIT)
    rewritten(path, lambda t: t.update({key: a.astype(dtype) for key, a in t.items()}))
    found, _ = pretrained.load(path, VIT, abstract)
    assert_equal(
        found, jax.tree.map(lambda a: np.asarray(a).astype(dtype).astype(np.float32), variables)
    )


def test_a_file_that_does_not_fit_is_told_in_one_sentence(saved):
    path, _, abstract, _ = saved(VIT)

    def spoil(tensors):
        del tensors["norm.bias"], tensors["blocks.1.norm2.weight"]
        tensors["blocks.3.norm1.weight"] = tensors["ls1.gamma"] = np.zeros(16, np.float32)
        tensors["blocks.0.mlp.fc1.weight"] = np.zeros((16, 64), np.float32)
        tensors["cls_token"] = np.zeros((1, 1, 8), np.float32)

    rewritten(path, spoil)
    with pytest.raises(UserError) as error:
        pretrained.load(path, VIT, abstract)
    assert str(error.value) == (
        f"{path} does not fit the encoder '16x3x2/4': missing norm.bias, blocks.1.norm2.weight; "
        "extra blocks.3.norm1.weight, ls1.gamma; misshaped cls_token (1, 1, 8) instead of "
        "(1, 1, 16), blocks.0.mlp.fc1.weight (16, 64) instead of (64, 16); choose the encoder that "
        "the file was made for."
    )


def test_fixed_positions_of_another_width_do_not_hide_the_list(saved):
    path, *_ = saved(VIT)
    rewritten(path, lambda tensors: tensors.pop("norm.bias"))
    name = "32x3x2/4"
    with pytest.raises(UserError, match=r"missing norm\.bias; misshaped cls_token \(1, 1, 16\)"):
        pretrained.load(path, name, abstract_of(make(name), 16))


def test_numbers_that_are_not_finite_are_refused(saved):
    path, _, abstract, _ = saved(VIT)
    rewritten(path, lambda tensors: tensors.update({"norm.bias": np.full(16, np.nan, np.float32)}))
    with pytest.raises(UserError, match=r"not finite norm\.bias; choose"):
        pretrained.load(path, VIT, abstract)


def test_a_long_list_is_cut(saved):
    path, *_ = saved(VIT)
    name = "16x9x2/4"
    with pytest.raises(UserError, match=r"missing blocks\.3\.norm1\.weight.* and 52 more; choose"):
        pretrained.load(path, name, abstract_of(make(name), 16))


@pytest.mark.parametrize("shape", [(1, 16, 16), (17, 16), (1, 17, 8), (1, 1, 16)])
def test_positions_without_a_square_grid_are_misshaped(saved, shape):
    path, _, abstract, _ = saved(VIT, positions="learned")
    rewritten(path, lambda t: t.update(pos_embed=np.zeros(shape, np.float32)))
    with pytest.raises(UserError, match=r"misshaped pos_embed .* instead of \(1, 17, 16\)"):
        pretrained.load(path, VIT, abstract)


def test_learned_positions_do_not_go_into_an_encoder_with_fixed_ones(saved):
    path, *_ = saved(VIT, positions="learned")
    with pytest.raises(UserError, match=r'pos_embed; set model\.positions="learned" to use them'):
        pretrained.load(path, VIT, abstract_of(make(VIT), 16))


@pytest.mark.parametrize(("theirs", "ours"), [("sincos", "centred"), ("centred", "sincos")])
def test_fixed_positions_of_one_kind_do_not_go_into_an_encoder_of_another(saved, theirs, ours):
    path, *_ = saved(VIT, positions=theirs)
    with pytest.raises(UserError, match=f"other than the fixed ones, '{ours}', in pos_embed"):
        pretrained.load(path, VIT, abstract_of(make(VIT), 16), positions=ours)


def test_fixed_positions_of_any_grid_are_recognised(saved):
    path, _, _, variables = saved(VIT)
    found, _ = pretrained.load(path, VIT, abstract_of(make(VIT), 32))
    assert_equal(found, variables)
    # In an encoder with learned ones they are where these begin.
    learned = make(VIT, positions="learned")
    found, _ = pretrained.load(path, VIT, abstract_of(learned, 16))
    table = np.concatenate([np.zeros((1, 16)), vit.sincos_positions(4, 4, 16)])
    np.testing.assert_allclose(found["params"]["positions_table"], table, atol=1e-6)


def test_files_that_are_not_there_or_not_safetensors_are_refused(saved, tmp_path):
    _, _, abstract, variables = saved(VIT)
    with pytest.raises(UserError, match=r"no file .*nothing\.safetensors"):
        pretrained.load(tmp_path / "nothing.safetensors", VIT, abstract)
    pickled = tmp_path / "weights.pth"
    pickled.write_bytes(b"PK\x03\x04" + bytes(64))
    with pytest.raises(UserError, match=r"weights\.pth cannot be read as safetensors"):
        pretrained.load(pickled, VIT, abstract)
    with pytest.raises(UserError, match="Cannot write weights to"):
        pretrained.save(tmp_path / "no" / "folder", VIT, variables, image_size=16)


def test_unknown_encoders_list_the_known(tmp_path):
    with pytest.raises(UserError, match=r"Unknown encoder 'vgg'; known: cnn16, .* efficientnet_b0"):
        pretrained.save(tmp_path / "x", "vgg", {}, image_size=16)


def torch_of(name, **settings):
    """A PyTorch module of random weights, with the norm statistics of random images."""
    torch = pytest.importorskip("torch")
    from tests.models import timm_modules

    torch.manual_seed(0)
    if "/" in name:
        size = vit.parse(name)
        return timm_modules.ViT(size.patch, size.dim, size.depth, size.heads, **settings).eval()
    model = timm_modules.make(name)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
            torch.nn.init.normal_(module.weight, 1.0, 0.2)
            torch.nn.init.normal_(module.bias, 0.0, 0.2)
    # With stronger branches PyTorch's own f32 is 5e-5 away from its f64 in ResNet-50.
    for module in model.modules():
        if isinstance(module, timm_modules.Residual):
            last = module.bn3 if module.bottleneck else module.bn2
            torch.nn.init.normal_(last.weight, 0.2, 0.2)
    with torch.no_grad():
        model.train()(torch.randn(4, 3, 64, 64))
    return model.eval()


def assert_same_map(model, name, variables, last, image_size):
    """Our `last` stage equals what the module returns: to 1e-5 of its largest value."""
    import torch

    images = np.random.default_rng(1).normal(size=(2, 3, image_size, image_size))
    images = images.astype(np.float32)
    with torch.no_grad():
        theirs = model(torch.from_numpy(images)).numpy()
    if theirs.ndim == 4:
        theirs = theirs.transpose(0, 2, 3, 1)
    ours = make(name, **({"positions": "learned"} if "/" in name else {}))
    found = jax.jit(functools.partial(ours.apply, train=False))(
        variables, images.transpose(0, 2, 3, 1)
    )
    assert np.isfinite(theirs).all()
    np.testing.assert_allclose(found[last], theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


def write(model, path):
    tensors = {key: tensor.numpy() for key, tensor in model.state_dict().items()}
    safetensors.numpy.save_file(tensors, path)


@pytest.mark.parametrize("image_size", [16, 24])
def test_vit_equals_pytorch(tmp_path, image_size):
    model = torch_of(VIT, image_size=image_size)
    write(model, tmp_path / "vit.safetensors")
    abstract = abstract_of(make(VIT, positions="learned"), image_size)
    variables, left = pretrained.load(tmp_path / "vit.safetensors", VIT, abstract)
    assert left == []
    assert_same_map(model, VIT, variables, "tokens", image_size)


@pytest.mark.parametrize(
    "name",
    [
        "resnet18-small",
        pytest.param("resnet18", marks=pytest.mark.slow),
        pytest.param("resnet50", marks=pytest.mark.slow),
        pytest.param("efficientnet_b0", marks=pytest.mark.slow),
        pytest.param("efficientnet_b0-small", marks=pytest.mark.slow),
    ],
)
def test_convolutional_encoders_equal_pytorch(tmp_path, name):
    model = torch_of(name)
    write(model, tmp_path / "theirs.safetensors")
    variables, _ = pretrained.load(
        tmp_path / "theirs.safetensors", name, abstract_of(make(name), 64)
    )
    assert_same_map(model, name, variables, "patches", 64)


@pytest.mark.parametrize("name", CONVOLUTIONAL)
def test_every_size_has_the_tensors_of_its_module(name):
    torch = pytest.importorskip("torch")
    from tests.models import timm_modules

    with torch.device("meta"):
        theirs = timm_modules.make(name).state_dict()
    shapes = {key: tuple(a.shape) for key, a in theirs.items() if "num_batches" not in key}
    ours = {key: pretrained._hollow(a.shape) for key, a in flat(abstract_of(make(name))).items()}
    table = pretrained._table(name, learned=False)
    assert {key: layout.outwards(ours[to]).shape for key, (to, layout) in table.items()} == shapes


@pytest.mark.parametrize("name", [VIT, "resnet18-small"])
def test_pytorch_takes_what_is_written(saved, name):
    path, _, _, variables = saved(name, **({"positions": "learned"} if name == VIT else {}))
    model = torch_of(name, **({"image_size": 16} if name == VIT else {}))
    import torch

    tensors = safetensors.numpy.load_file(path)
    model.load_state_dict({key: torch.from_numpy(tensor) for key, tensor in tensors.items()})
    assert_same_map(model, name, variables, "tokens" if name == VIT else "patches", 16)
