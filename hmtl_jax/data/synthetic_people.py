"""Who stands in a synthetic picture, and how: every number of a face, drawn from a hash.

A picture is a function of (seed, split, index) alone. Each quantity has a name, and its value is a
hash of that name and the index, so that a quantity added later leaves all others as they were.
Lengths are in half-widths of the head ("head units"), y down, x to the right of the image.
"""

import zlib

import numpy as np

SPLITS = ("train", "validation", "test")
IMAGES_PER_IDENTITY = 8

EXPRESSIONS = (
    "neutral", "happiness", "sadness", "surprise", "fear", "disgust", "anger", "contempt",
)  # fmt: skip
EXPRESSION_SHARES = (0.20, 0.20, 0.13, 0.11, 0.09, 0.09, 0.11, 0.07)
ATTRIBUTES = (
    "glasses", "beard", "mustache", "long_hair", "hat", "bald", "earrings", "bangs", "freckles",
    "smiling", "mouth_open", "young",
)  # fmt: skip

# What an expression of full strength does to a resting face (after the facial action coding of
# Ekman and Friesen 1978; the amounts are ours). Lengths in head units, the rest in 0..1.
#   smile: mouth corners up · upper, lower: lips apart · width: mouth wider · asym: one corner up
#   brow: brows up · inner: their inner ends up · lid: upper lid up · squint: lower lid up
#   furrow: upright lines between the brows · forehead: lines across · fold: lines beside the nose
#   nose: wrinkles on its bridge · press: lips thin · teeth: teeth show where the lips part
_ACTIONS: tuple[str, ...] = (
    "smile", "upper", "lower", "width", "asym", "brow", "inner", "lid", "squint", "furrow",
    "forehead", "fold", "nose", "press", "teeth",
)  # fmt: skip
_STRENGTH: dict[str, tuple[float, ...]] = {
    "neutral": (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0),
    "happiness": (0.28, 0.03, 0.17, 0.16, 0, 0.02, 0, -0.2, 0.40, 0, 0, 0.8, 0, 0.2, 1),
    "sadness": (-0.28, 0, 0, -0.10, 0, 0.02, 0.20, -0.35, 0, 0.3, 0.2, 0.3, 0, 0, 0),
    "surprise": (0, 0.08, 0.34, -0.28, 0, 0.20, 0.02, 0.6, 0, 0, 0.8, 0, 0, 0, 0),
    "fear": (-0.12, 0.06, 0.15, 0.16, 0, 0.13, 0.20, 0.55, 0, 0.3, 0.6, 0, 0, 0.3, 0.8),
    "disgust": (-0.14, 0.16, 0.02, 0, 0, -0.10, -0.05, -0.35, 0.5, 0.4, 0, 1, 1, 0, 0.8),
    "anger": (-0.08, 0, 0, -0.06, 0, -0.13, -0.24, 0.10, 0.3, 1, 0, 0.2, 0.2, 0.8, 1),
    "contempt": (0, 0, 0, 0.02, 0.26, 0, 0, -0.20, 0.15, 0, 0, 0.4, 0, 0, 0),
}
EXAGGERATION = 1.4  # of all of them: what is left of a face at 48 px must still show it
_JITTER = {
    "smile": 0.025, "width": 0.03, "asym": 0.02, "brow": 0.022, "inner": 0.025, "lid": 0.09,
    "squint": 0.06, "furrow": 0.08, "forehead": 0.08, "fold": 0.08,
}  # fmt: skip

# Valence and arousal of an expression of full strength (the circumplex of Russell 1980, with the
# places that AffectNet's annotators give the eight classes; the numbers are ours).
_VALENCE = (0.0, 0.85, -0.75, 0.2, -0.5, -0.65, -0.6, -0.4)
_AROUSAL = (0.0, 0.35, -0.35, 0.8, 0.75, 0.35, 0.65, 0.1)

SKIN_TONES = np.array(
    [
        [240, 205, 184],
        [224, 180, 148],
        [198, 150, 112],
        [166, 118, 84],
        [126, 86, 62],
        [92, 64, 48],
    ],
    np.float32,
)
_HAIR = np.array(
    [(28, 24, 24), (58, 38, 28), (98, 66, 42), (196, 158, 96), (140, 66, 34)], np.float32
)
_IRIS = np.array([(62, 40, 26), (46, 32, 24), (70, 104, 130), (82, 106, 70)], np.float32)


class Dice:
    """Random numbers that depend on the key and on a quantity's name, and on nothing else."""

    def __init__(self, *words: str | int | np.ndarray):
        """Takes ints, strings and int arrays [N]; the key of row n hashes them all in order."""
        numbers = [zlib.crc32(w.encode()) if isinstance(w, str) else w for w in words]
        self._key = np.zeros(1, np.uint64)
        for number in numbers:
            self._key = _mix(self._key + np.atleast_1d(np.asarray(number)).astype(np.uint64))

    def _bits(self, name: str) -> np.ndarray:
        return _mix(self._key + np.uint64(zlib.crc32(name.encode())))

    def uniform(self, name: str, low=0.0, high=1.0) -> np.ndarray:
        """float32 [N] in [low, high)."""
        unit = (self._bits(name) >> np.uint64(40)).astype(np.float64) / 2**24
        return (low + (high - low) * unit).astype(np.float32)

    def normal(self, name: str, scale=1.0) -> np.ndarray:
        """float32 [N], near normal (a sum of four uniforms), within ±3.47 scales."""
        bits = self._bits(name)
        quarters = [(bits >> np.uint64(16 * i)) & np.uint64(0xFFFF) for i in range(4)]
        unit = np.sum(quarters, 0, dtype=np.float64) / 65536 - 2
        return (scale * 3**0.5 * unit).astype(np.float32)

    def chance(self, name: str, share) -> np.ndarray:
        """Flags [N], True with probability `share` (a number, or [N])."""
        return self.uniform(name) < share

    def choice(self, name: str, shares) -> np.ndarray:
        """int64 [N] below len(shares), with those probabilities (they need not sum to 1)."""
        edges = np.cumsum(np.asarray(shares, np.float64))
        return np.searchsorted(edges[:-1] / edges[-1], self.uniform(name), side="right")

    def integer(self, name: str, bound: int) -> np.ndarray:
        """int64 [N] in 0..bound-1."""
        return ((self._bits(name) >> np.uint64(20)) % np.uint64(bound)).astype(np.int64)

    def uniforms(self, name: str, count: int, low=0.0, high=1.0) -> np.ndarray:
        """float32 [N, count] in [low, high)."""
        return np.stack([self.uniform(f"{name} {i}", low, high) for i in range(count)], 1)

    def colour(self, name: str, low=20.0, high=235.0) -> np.ndarray:
        """float32 [N,3]."""
        return self.uniforms(name, 3, low, high)


def _mix(key: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014); wraps around, as it must."""
    key = key + np.uint64(0x9E3779B97F4A7C15)
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))


def sample(indices: np.ndarray, split: str, seed: int) -> dict[str, np.ndarray]:
    """Returns the quantities of each picture: arrays [N] or [N,3], all that drawing needs."""
    ranks = indices // IMAGES_PER_IDENTITY
    who = ranks * len(SPLITS) + SPLITS.index(split)  # no identity stands in two splits
    dice = Dice(seed, "picture", split, indices)
    person = traits(who, seed)
    picture = person | {"identity": who} | _expression(dice) | _pose(dice) | _scene(dice)
    picture |= _wear(dice, person) | _forgery(dice, ranks, split, seed)
    light = person["skin"] @ np.array([0.299, 0.587, 0.114], np.float32) / 255
    picture["exposure"] = (0.62 / light) ** 0.4  # as a camera that looks at the face sets it
    picture["age"] = person["age"] + np.floor(dice.uniform("age", -2, 3))
    return picture


def traits(who: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """What a person keeps from picture to picture."""
    d = Dice(seed, "person", who)
    male = d.chance("male", 0.5)
    tone = d.choice("tone", np.ones(len(SKIN_TONES)))
    age = np.floor(14 + 66 * d.uniform("age") ** 1.3).astype(np.float32)
    young = np.clip((30 - age) / 16, 0, 1)
    old = np.clip((age - 35) / 40, 0, 1)
    dark = tone >= 3
    beard = male & d.chance("beard", 0.3) & (age > 20)
    bald = d.chance("bald", np.where(male, 0.08 + 0.25 * old, 0.02))
    long_hair = d.chance("long hair", np.where(male, 0.12, 0.7)) & ~bald
    grey = d.uniform("grey", 0, 2) * old > 0.6
    hair = _HAIR[d.choice("hair", (4, 3, 2, 2, 1))]
    hair = np.where(dark[:, None], _HAIR[d.choice("dark hair", (8, 2))], hair)
    hair = np.where(grey[:, None], np.array([168, 165, 162], np.float32), hair)
    iris = np.where(dark, d.choice("dark iris", (1, 2)), d.choice("iris", (2, 1, 2, 1)))
    return {
        "gender": np.where(male, 0, 1),
        "skin_tone": tone,
        "age": age,
        "old": old,
        "skin": SKIN_TONES[tone] * (1 + d.normal("shade", 0.03))[:, None],
        "hair": hair,
        "iris": _IRIS[iris],
        "aspect": d.uniform("aspect", 1.24, 1.40) + 0.03 * male - 0.06 * young,
        "jaw": d.uniform("jaw", 0.07, 0.20) + 0.06 * ~male,
        "eye_x": d.uniform("eye x", 0.37, 0.44),
        "eye_y": d.uniform("eye y", -0.16, -0.06) + 0.04 * young,
        "eye_w": d.uniform("eye w", 0.18, 0.22) + 0.015 * young,
        "eye_h": d.uniform("eye h", 0.095, 0.12) + 0.015 * young + 0.01 * ~male,
        "brow_gap": d.uniform("brow gap", 0.21, 0.27),
        "brow_thick": d.uniform("brow thick", 0.034, 0.054) + 0.018 * male,
        "brow_tilt": d.normal("brow tilt", 0.02),
        "nose_y": d.uniform("nose y", 0.30, 0.40),
        "nose_w": d.uniform("nose w", 0.13, 0.19) + 0.02 * male,
        "mouth_y": d.uniform("mouth y", 0.70, 0.78),
        "mouth_w": d.uniform("mouth w", 0.36, 0.43) + 0.02 * male,
        "lip": d.uniform("lip", 0.055, 0.085) + 0.02 * ~male,
        "lip_red": d.uniform("lip red", 0.1, 0.4) + 0.45 * (~male & d.chance("lipstick", 0.5)),
        "hairline": d.uniform("hairline", -0.86, -0.70) - 0.12 * old * male,
        "volume": d.uniform("volume", 0.15, 0.40),
        "freckles": d.chance("freckles", 0.2) & (tone < 4),
        "texture": d.integer("texture", 1 << 16),
        "beard": beard,
        "mustache": male & d.chance("mustache", np.where(beard, 0.7, 0.15)) & (age > 20),
        "bald": bald,
        "long_hair": long_hair,
        "bangs": d.chance("bangs", np.where(male, 0.12, 0.35)) & ~bald,
    }


def _expression(d: Dice) -> dict[str, np.ndarray]:
    expression = d.choice("expression", EXPRESSION_SHARES)
    intensity = d.uniform("intensity", 0.55, 1.0) * (expression > 0)
    table = np.array([_STRENGTH[name] for name in EXPRESSIONS], np.float32)
    strength = EXAGGERATION * table[expression] * intensity[:, None]
    actions = dict(zip(_ACTIONS, strength.T, strict=True))
    for name, scale in _JITTER.items():
        actions[name] = actions[name] + d.normal(name, scale)
    _variants(d, expression, intensity, actions)
    actions["asym"] = actions["asym"] * np.where(d.chance("side", 0.5), 1, -1)
    affect = {
        "valence": np.array(_VALENCE, np.float32)[expression] * intensity,
        "arousal": np.array(_AROUSAL, np.float32)[expression] * intensity,
    }
    affect = {k: np.clip(v + d.normal(k, 0.05), -1, 1) for k, v in affect.items()}
    gaze = {"gaze_x": d.normal("gaze x", 0.03), "gaze_y": d.normal("gaze y", 0.012)}
    return {"expression": expression, "intensity": intensity} | actions | affect | gaze


def _variants(d: Dice, expression, intensity, actions) -> None:
    """One feeling has several faces: a smile with closed lips, a rage that bares its teeth."""
    coin = d.chance("variant", 0.4)
    quiet_smile = coin & (expression == EXPRESSIONS.index("happiness"))
    bared = coin & (expression == EXPRESSIONS.index("anger"))
    ajar = d.chance("ajar", 0.2) & (expression == EXPRESSIONS.index("neutral"))
    actions["upper"] = np.where(quiet_smile, 0, actions["upper"] + 0.06 * intensity * bared)
    actions["lower"] = np.where(quiet_smile, 0, actions["lower"] + 0.09 * intensity * bared)
    actions["lower"] = actions["lower"] + 0.03 * ajar


def _pose(d: Dice) -> dict[str, np.ndarray]:
    return {
        "yaw": np.clip(d.normal("yaw", 11), -50, 50),
        "pitch": np.clip(d.normal("pitch", 6.5), -28, 28),
        "roll": np.clip(d.normal("roll", 5.5), -28, 28),
    }


def _scene(d: Dice) -> dict[str, np.ndarray]:
    """Light, place in the frame, background and camera."""
    return {
        "scale": d.uniform("scale", 0.37, 0.42),  # half-width of the head / picture size
        "centre_x": 0.5 + d.normal("centre x", 0.015),
        "centre_y": 0.50 + d.normal("centre y", 0.015),
        "light_x": d.normal("light x", 0.5),
        "light_y": d.normal("light y", 0.35) - 0.3,
        "ambient": d.uniform("ambient", 0.35, 0.75),
        "tint": d.uniforms("tint", 3, 0.9, 1.1),
        "clothes": d.uniform("cloth", 40, 200)[:, None] + d.uniforms("cloth hue", 3, -40, 40),
        "back_colour": d.uniform("back", 40, 215)[:, None] + d.uniforms("back hue", 3, -35, 35),
        "back_kind": d.choice("back kind", (1, 1, 1)),
        "back_dice": d.uniforms("back dice", 24),
        "occluded": d.chance("occluder", 0.10),
        "occluder_colour": d.colour("occluder"),
        "occluder_dice": d.uniforms("occluder dice", 6),
        "grain": d.integer("grain", 1 << 30),
        "blur": d.uniform("blur", 0, 0.2),
        "noise": d.uniform("noise", 1, 8),
        "contrast": d.uniform("contrast", 0.75, 1.15),
        "brightness": d.normal("brightness", 12),
        "curve": d.uniform("curve", -0.25, 0.3),
    }


def _wear(d: Dice, person: dict) -> dict[str, np.ndarray]:
    """What hides what is decided here, so that an attribute's label says what can be seen."""
    hat = d.chance("hat", 0.13)
    female = person["gender"] == 1
    return {
        "glasses": d.chance("glasses", 0.22),
        "hat": hat,
        "bald": person["bald"] & ~hat,
        "bangs": person["bangs"] & ~hat,
        "earrings": d.chance("earrings", np.where(female, 0.35, 0.06)),
        "glass_colour": d.colour("glasses", 10, 110),
        "hat_colour": d.colour("hat"),
    }


# What a face-swap brings along from the donor; the rest stays the target's.
SWAPPED = (
    "skin", "hair", "iris", "eye_x", "eye_y", "eye_w", "eye_h", "brow_gap", "brow_thick",
    "brow_tilt", "nose_y", "nose_w", "mouth_y", "mouth_w", "lip", "lip_red", "freckles", "texture",
)  # fmt: skip


def _forgery(d: Dice, ranks: np.ndarray, split: str, seed: int) -> dict[str, np.ndarray]:
    """A donor of the same split gives the inner face; colour and sharpness do not quite match."""
    donor = traits((ranks + 1 + d.integer("donor", 97)) * len(SPLITS) + SPLITS.index(split), seed)
    sign = np.where(d.chance("swap sign", 0.5), 1, -1)
    light = (sign * d.uniform("swap light", 0.03, 0.12))[:, None]
    return {
        "fake": d.chance("fake", 0.35),
        "swap_gain": d.uniforms("swap gain", 3, 0.93, 1.07) + light,
        "swap_soft": d.uniform("swap soft", 0.12, 0.45),
        "swap_blur": d.uniform("swap blur", 0.05, 0.25),
    } | {f"donor {name}": donor[name] for name in SWAPPED}
