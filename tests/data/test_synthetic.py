"""Synthetic faces: a function of (seed, split, index) alone, whose labels say what is drawn."""

import subprocess
import sys

import numpy as np
import pytest

from hmtl_jax.data import synthetic, synthetic_face, synthetic_people, synthetic_scene
from hmtl_jax.errors import UserError

SIZE = 64
GOLDEN_COLOUR = (119.3, 101.7, 89.9)
GOLDEN_EXPRESSIONS = [115, 93, 74, 55, 41, 38, 52, 44]
GOLDEN_FAKES = 165
WHOLE = {"expression": 8, "gender": 2, "skin_tone": 6, "fake": 2}


@pytest.fixture(scope="module")
def faces():
    return synthetic.render(np.arange(512), split="train")


def quantities(indices, split="train", **changed):
    """Sampled quantities, some of them replaced for all pictures."""
    p = synthetic_people.sample(np.asarray(indices), split, 0)
    for name, value in changed.items():
        p[name] = np.broadcast_to(np.asarray(value, p[name].dtype), p[name].shape).copy()
    return p


def changed_pixels(before, after):
    """bool [n,S,S]: where two sets of pictures differ at all."""
    return (before != after).any(-1)


def test_shapes_dtypes_and_ranges(faces):
    n = len(faces["image"])
    assert faces["image"].shape == (n, SIZE, SIZE, 3) and faces["image"].dtype == np.uint8
    for label, classes in WHOLE.items():
        assert set(np.unique(faces[label])) == set(range(classes))
        assert len(synthetic.CLASS_NAMES[label]) == classes
    assert set(np.unique(faces["attributes"])) == {0, 1}
    assert faces["attributes"].shape == (n, len(synthetic.ATTRIBUTES))
    for label in ("valence", "arousal"):
        assert faces[label].dtype == np.float32 and np.abs(faces[label]).max() <= 1
    assert faces["pose"].shape == (n, 3) and 25 < np.abs(faces["pose"]).max() <= 50
    assert faces["age"].min() >= 10 and faces["age"].max() <= 85
    assert faces["image"].std() > 40  # neither black nor burnt out


def test_a_picture_does_not_depend_on_its_batch(faces):
    shuffled = np.random.default_rng(0).permutation(512)[:100]
    again = synthetic.render(shuffled, split="train")
    alone = [synthetic.render(np.array([i]), split="train") for i in shuffled[:10]]
    for name, value in again.items():
        np.testing.assert_array_equal(value, faces[name][shuffled], err_msg=name)
        for i, one in zip(shuffled, alone, strict=False):
            np.testing.assert_array_equal(one[name][0], faces[name][i], err_msg=name)


def test_another_process_and_another_chunk_draw_the_same(faces, monkeypatch):
    script = (
        "import sys, numpy as np; from hmtl_jax.data import synthetic as s;"
        "sys.stdout.buffer.write(s.render(np.arange(40), split='train')['image'].tobytes())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout == faces["image"][:40].tobytes()
    monkeypatch.setattr(synthetic, "_CHUNK", 7)
    chunked = synthetic.render(np.arange(40), split="train")["image"]
    np.testing.assert_array_equal(chunked, faces["image"][:40])


def test_golden_colours_and_counts(faces):
    """If the renderer changed on purpose, put the new values here: written records differ too."""
    mean = faces["image"].reshape(-1, 3).mean(0)
    np.testing.assert_allclose(mean, GOLDEN_COLOUR, atol=0.5)
    assert np.bincount(faces["expression"]).tolist() == GOLDEN_EXPRESSIONS
    assert int(faces["fake"].sum()) == GOLDEN_FAKES


def test_seeds_and_splits_draw_other_pictures(faces):
    for split, seed in (("test", 0), ("train", 1)):
        image = synthetic.render(np.arange(20), split=split, seed=seed)["image"]
        assert (image != faces["image"][:20]).any((1, 2, 3)).all()


def test_identities_are_shared_within_a_split_and_never_across():
    whole = {
        split: synthetic.render(np.arange(400), split=split, size=16)
        for split in synthetic.SPLIT_SIZES
    }
    people = [set(labels["identity"]) for labels in whole.values()]
    assert not (people[0] & people[1] or people[0] & people[2] or people[1] & people[2])
    for labels in whole.values():
        who, counts = np.unique(labels["identity"], return_counts=True)
        assert (counts == synthetic.IMAGES_PER_IDENTITY).all()
        for label in ("gender", "skin_tone"):
            assert all(len(set(labels[label][labels["identity"] == w])) == 1 for w in who)
        assert all(np.ptp(labels["age"][labels["identity"] == w]) <= 5 for w in who)


def test_donors_of_forgeries_stay_in_their_split():
    """A donor's nose is found among the people of the split, and among no others."""
    ranks = np.arange(0, 400 // synthetic.IMAGES_PER_IDENTITY + 100)
    for number, split in enumerate(synthetic_people.SPLITS):
        given = quantities(np.arange(400), split)["donor nose_y"]
        noses = [synthetic_people.traits(ranks * 3 + other, seed=0)["nose_y"] for other in range(3)]
        shares = [np.isin(given, own).mean() for own in noses]
        assert shares[number] == 1 and max(shares[:number] + shares[number + 1 :]) < 0.1


def test_classes_are_as_imbalanced_as_said():
    p = quantities(np.arange(8000))
    shares = np.bincount(p["expression"], minlength=8) / 8000
    np.testing.assert_allclose(shares, synthetic_people.EXPRESSION_SHARES, atol=0.02)
    assert 0.3 < p["fake"].mean() < 0.4


def test_dice_are_uniform_and_names_are_independent():
    dice = synthetic_people.Dice(3, "word", np.arange(20000))
    a, b, c = dice.uniform("a"), dice.uniform("b"), dice.normal("a normal")
    np.testing.assert_allclose(np.quantile(a, [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.012)
    other = synthetic_people.Dice(4, "word", np.arange(20000)).uniform("a")
    for one, two in ((a, b), (a, other), (a, c), (a[1:], a[:-1])):
        assert abs(np.corrcoef(one, two)[0, 1]) < 0.03
    assert abs(c.mean()) < 0.03 and abs(c.std() - 1) < 0.02


def test_affect_follows_expression_and_strength():
    p = quantities(np.arange(6000))
    for name, sign in (("happiness", 1), ("sadness", -1), ("anger", -1)):
        rows = p["expression"] == synthetic_people.EXPRESSIONS.index(name)
        assert np.corrcoef(p["valence"][rows], p["intensity"][rows])[0, 1] * sign > 0.7
    assert np.abs(p["valence"][p["expression"] == 0]).mean() < 0.1


def test_strength_of_an_expression_moves_the_mouth():
    rest = quantities(np.arange(40), fake=False, occluded=False, noise=0, blur=0)
    names = ("smile", "upper", "lower", "width", "asym", "press", "teeth")
    full = np.array(synthetic_people._STRENGTH["happiness"], np.float32)
    rest |= {name: np.zeros(40, np.float32) for name in names}
    calm = synthetic_face.draw(rest, SIZE).astype(int)
    moved = []
    for strength in (0.25, 0.5, 1.0):
        value = dict(zip(synthetic_people._ACTIONS, full * strength, strict=True))
        acted = rest | {name: np.full(40, value[name], np.float32) for name in names}
        moved.append(np.abs(synthetic_face.draw(acted, SIZE) - calm).sum((1, 2, 3)))
    assert (moved[1] > moved[0]).mean() > 0.95 and (moved[2] > moved[1]).mean() > 0.95


def test_rotation_is_that_of_300w_lp():
    """The axes that the field draws for (yaw, pitch, roll), written from their formulas."""
    yaw, pitch, roll = 31.0, -17.0, 12.0
    y, p, r = -np.deg2rad(yaw), np.deg2rad(pitch), np.deg2rad(roll)
    turn = synthetic_scene.rotation(np.array([yaw]), np.array([pitch]), np.array([roll]))[0]
    right = [np.cos(y) * np.cos(r), np.cos(p) * np.sin(r) + np.cos(r) * np.sin(p) * np.sin(y)]
    down = [-np.cos(y) * np.sin(r), np.cos(p) * np.cos(r) - np.sin(p) * np.sin(y) * np.sin(r)]
    front = [np.sin(y), -np.cos(y) * np.sin(p)]
    np.testing.assert_allclose(turn[:2].T, [right, down, front], atol=1e-12)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-12)


@pytest.mark.parametrize(
    ("angle", "axis", "sign"), [("yaw", 0, -1), ("pitch", 1, -1), ("roll", 0, -1)]
)
def test_features_move_where_the_pose_says(angle, axis, sign):
    """Positive yaw: nose left. Positive pitch: nose up. Positive roll: chin left (clockwise)."""
    point = (0.0, 1.3, 0.2) if angle == "roll" else (0.0, 0.3, 1.0)
    places = []
    for degrees in (-20, 0, 20):
        p = quantities(np.arange(4), yaw=0, pitch=0, roll=0)
        p[angle] = np.full(4, degrees, np.float32)
        f = synthetic_scene.surface(p, SIZE)
        column_row = synthetic_scene.spot(f, p, *(np.full((4, 1), v) for v in point))
        places.append(column_row[:, 0, axis] * sign)
    assert (places[0] + 3 < places[1]).all() and (places[1] + 3 < places[2]).all()


def test_pixels_meet_the_head_where_the_head_is_projected():
    """`surface` inverts `spot`: the pixel of a point of the head lies at that point."""
    p = quantities(np.arange(32))
    f = synthetic_scene.surface(p, SIZE)
    x, y = np.full(32, 0.3), np.full(32, 0.4)
    z = np.sqrt(1 - x**2 - (y / p["aspect"]) ** 2)
    point = (v[:, None] for v in (x, y, z * synthetic_scene.DEPTH))
    column, row = np.round(synthetic_scene.spot(f, p, *point)[:, 0]).astype(int).T
    picked = np.arange(32), row, column
    for plane, value in ((f.x, x), (f.y, y), (f.z, z)):
        np.testing.assert_allclose(plane[picked], value, atol=2.5 / (0.3 * SIZE))


def test_a_mirrored_picture_has_yaw_and_roll_negated():
    p = quantities(np.arange(64), noise=0, old=0, freckles=False, occluded=False, fake=False)
    mirrored = dict(p)
    for name in ("yaw", "roll", "light_x", "gaze_x", "asym"):
        mirrored[name] = -p[name]
    mirrored["centre_x"] = 1 - p["centre_x"]
    picture, twin = (synthetic_face.draw(q, SIZE).astype(int) for q in (p, mirrored))
    f, g = (synthetic_scene.surface(q, SIZE) for q in (p, mirrored))
    np.testing.assert_allclose(g.x[:, :, ::-1], -f.x, atol=1e-4)
    np.testing.assert_allclose(g.y[:, :, ::-1], f.y, atol=1e-4)
    head = (f.inside > 0.3) & (f.y > -0.3)  # hair has strands, which are not symmetric
    apart = np.abs(twin[:, :, ::-1] - picture).mean(-1)
    unturned = np.abs(picture[:, :, ::-1] - picture).mean(-1)
    assert np.median(apart[head]) <= 6 and apart[head].mean() < 0.4 * unturned[head].mean()


def test_a_fake_differs_from_its_original_only_inside_the_mask():
    p = quantities(np.arange(300))
    original = synthetic_face.draw(p | {"fake": np.zeros(300, bool)}, SIZE)
    different = changed_pixels(original, synthetic_face.draw(p, SIZE))
    assert not different[~p["fake"]].any()
    mask = synthetic_face.inner_mask(synthetic_scene.surface(p, SIZE), p) > 0
    reach = np.zeros_like(mask)  # the camera's blur carries a change one pixel on
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            reach |= np.roll(mask, (dy, dx), (1, 2))
    assert not (different & ~reach).any()
    assert different[p["fake"]].sum((1, 2)).min() > 100


@pytest.mark.parametrize(
    "name",
    ["glasses", "beard", "mustache", "long_hair", "hat", "bald", "earrings", "bangs", "freckles"],
)
def test_an_attribute_is_there_to_be_seen(name):
    """Taking it away changes the picture of nearly all who have it, and of nobody else."""
    p = quantities(np.arange(600), occluded=False)
    have = np.flatnonzero(p[name])[:40]
    own = {key: value[have] for key, value in p.items()}
    without = own | {name: np.zeros(len(have), bool)}
    seen = changed_pixels(synthetic_face.draw(own, SIZE), synthetic_face.draw(without, SIZE))
    assert len(have) >= 8 and (seen.sum((1, 2)) > 10).mean() > 0.9


def test_labels_of_attributes_say_what_is_drawn(faces):
    p = quantities(np.arange(512))
    for column, name in enumerate(synthetic.ATTRIBUTES):
        drawn = {"smiling": p["smile"] > 0.07, "young": faces["age"] < 35}
        drawn["mouth_open"] = p["upper"] + p["lower"] > 0.05
        want = drawn.get(name, p.get(name))
        np.testing.assert_array_equal(faces["attributes"][:, column], want.astype(int))
    worn = dict(zip(synthetic.ATTRIBUTES, faces["attributes"].T, strict=True))
    assert not (worn["bald"] & (worn["hat"] | worn["bangs"] | worn["long_hair"])).any()


def test_windows_leave_nothing_out(monkeypatch):
    """Drawing every part on the whole picture gives the same picture."""
    p = quantities(np.arange(1000, 1400))
    windowed = synthetic_face.draw(p, SIZE)
    frame, corners = synthetic_scene.frame, np.array([[[0, 0], [SIZE, SIZE]]])
    for module in (synthetic_scene, synthetic_face):
        monkeypatch.setattr(
            module, "frame", lambda f, _, k: frame(f, corners.repeat(len(f.aa), 0), k)
        )
    whole = synthetic_face.draw(p, SIZE)
    np.testing.assert_array_equal(windowed, whole)


@pytest.mark.parametrize("size", [16, 48, 96, 160])
def test_other_sizes_show_the_same_scene(size):
    """A larger picture, averaged down, is near the smaller one: sizes are no other data."""
    p = quantities(np.arange(24), noise=0, blur=0)
    large = synthetic_face.draw(p, 2 * size).astype(float)
    small = synthetic_face.draw(p, size).astype(float)
    halved = large.reshape(24, size, 2, size, 2, 3).mean((2, 4))
    assert np.abs(halved - small).mean() < 12
    assert np.corrcoef(halved.ravel(), small.ravel())[0, 1] > 0.95


def test_planes_stay_in_single_precision():
    p = quantities(np.arange(8))
    f = synthetic_scene.surface(p, SIZE)
    assert f.planes.dtype == synthetic_scene.background(p, SIZE).dtype == np.float32
    assert synthetic_face.face(f, p, synthetic_face.glow(f, p)).dtype == np.float32


def test_no_linear_model_reads_the_expression():
    """Ridge regression on grey pixels stays near the most frequent class on other people."""
    train, test = (synthetic.render(np.arange(1500), split=s) for s in ("train", "test"))
    x, y = (r["image"].mean(-1).reshape(1500, -1) / 255 for r in (train, test))
    middle = x.mean(0)
    kernel = (x - middle) @ (x - middle).T + 500 * np.eye(1500)
    weights = np.linalg.solve(kernel, np.eye(8)[train["expression"]])
    guess = ((y - middle) @ (x - middle).T @ weights).argmax(1)
    assert (guess == test["expression"]).mean() < 0.45


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"split": "tset"}, "Did you mean 'test'"),
        ({"indices": np.array([-1])}, "integers >= 0"),
        ({"indices": np.array([0.5])}, "integers >= 0"),
        ({"indices": np.array([[1]])}, "integers >= 0"),
        ({"size": 8}, "at least 16"),
    ],
)
def test_a_mistake_is_named(arguments, says):
    asked = {"indices": np.arange(2), "split": "test"} | arguments
    with pytest.raises(UserError, match=says):
        synthetic.render(asked.pop("indices"), **asked)


def test_no_pictures_are_no_pictures():
    assert synthetic.render(np.arange(0), split="test")["image"].shape == (0, SIZE, SIZE, 3)
