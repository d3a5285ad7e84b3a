"""Draws a synthetic face on the head's surface: skin, features, hair, what is worn, the forgery.

Every part is a signed distance in head units turned into cover by `edge`. Parts that are small are
drawn in windows that follow the head (outside its window a part's cover is zero).
"""

from functools import partial

import numpy as np

from hmtl_jax.data.synthetic_people import SWAPPED
from hmtl_jax.data.synthetic_scene import (
    Params,
    Rows,
    Surface,
    at,
    background,
    blend,
    blur,
    body,
    camera,
    edge,
    frame,
    occluder,
    paint,
    piece,
    pixels,
    put_back,
    row,
    surface,
    texture,
    window,
)  # fmt: skip


def draw(p: Params, size: int) -> np.ndarray:
    """Pictures of the sampled quantities `p` (arrays [n] and [n,k]): uint8 [n,S,S,3], RGB."""
    f = surface(p, size)
    canvas = background(p, size)
    strands = texture(f, p["texture"], 24, 4)
    hair_behind(canvas, f, p, strands)
    body(canvas, p)
    some(canvas, f, p, ~p["long_hair"] | p["earrings"], ears)
    light = glow(f, p)
    rgb = face(f, p, light)
    some(rgb, f, p, p["fake"], partial(swap, light=light))
    blend(canvas, edge(f.inside * np.float32(0.5), f.aa), np.moveaxis(rgb, 1, 0))
    some(canvas, f, p, p["beard"] | p["mustache"], beard)
    hair_before(canvas, f, p, strands)
    some(canvas, f, p, p["glasses"], glasses)
    some(canvas, f, p, p["hat"], hat)
    occluder(canvas, p)
    return camera(canvas, p)


def some(canvas, f: Surface, p: Params, flags, part) -> None:
    """Runs `part(canvas, f, p)` for the images [n] that have the flag."""
    rows = np.flatnonzero(flags)
    if rows.size:
        part(canvas, f.rows(rows), Rows(p, rows))


def within(canvas, g: Surface, p: Params, part) -> None:
    """Runs `part(rgb, g, p)` on the piece of the canvas that the window `g` shows, in place."""
    rgb = piece(canvas, g)
    part(rgb, g, p)
    put_back(canvas, g, rgb)


def darken(rgb, amount) -> None:
    """Takes a share [n,h,w] of the light away, in place; a negative one adds light."""
    rgb *= (1 - amount)[:, None]


# ---------------------------------------------------------------- skin and features


def face(f: Surface, p: Params, light) -> np.ndarray:
    """float32 [n,3,h,w]: lit skin with its features, to be cut out by the head's outline."""
    shade = texture(f, p["texture"], 20, 20)
    shade *= at(0.03 + 0.035 * p["old"])
    shade += 1
    shade *= light
    rgb = shade[:, None] * (p["skin"] * p["tint"]).astype(np.float32)[:, :, None, None]
    some(rgb, f, p, p["freckles"], freckles)
    zero = np.zeros_like(p["eye_y"])
    within(rgb, window(f, p, zero, p["eye_y"] - 0.22, (0.88, 0.56)), p, upper_face)
    within(rgb, window(f, p, zero, p["nose_y"] - 0.18, (0.46, 0.40)), p, nose)
    within(rgb, window(f, p, zero, p["mouth_y"], (0.62, 0.56)), p, lower_face)
    return rgb


def glow(f: Surface, p: Params) -> np.ndarray:
    """Light on the skin, [n,h,w]: ambient, and a lamp on the side that is turned to it."""
    lamp = np.stack([p["light_x"], p["light_y"], np.ones_like(p["light_x"])], 1)
    lamp = lamp / np.linalg.norm(lamp, axis=1, keepdims=True)
    lamp = np.concatenate([np.einsum("nij,nj->ni", f.axes, lamp[:, :2]), lamp[:, 2:]], 1)
    lx, ly, lz = np.moveaxis(np.einsum("nij,ni->nj", f.turn, lamp), 1, 0)
    shade = f.x * at(lx)
    shade += f.y * at(ly / p["aspect"])
    shade += f.z * at(lz)
    np.maximum(shade, 0, out=shade)
    shade *= at(1.05 - p["ambient"])
    shade += at(p["ambient"])
    return shade


def freckles(canvas, f: Surface, p: Params) -> None:
    """Brown spots across nose and cheeks."""
    within(canvas, window(f, p, 0 * p["eye_x"], 0 * p["eye_x"] + 0.25, (1.0, 0.5)), p, _freckles)


def _freckles(rgb, f: Surface, p: Params) -> None:
    spots = edge(texture(f, p["texture"] + 77, 16, 16) - 1.0, 0.5) * np.clip(f.z * 4, 0, 1)
    spots *= edge(0.35 - np.abs(f.y - 0.25), 0.3)
    paint(rgb, spots * np.float32(0.45), p["skin"] * p["tint"] * row(0.62, 0.45, 0.36))


def upper_face(rgb, f: Surface, p: Params) -> None:
    """Wrinkles, eyes and brows."""
    front, ax = np.clip(f.z * 4, 0, 1), np.abs(f.x)
    darken(rgb, upper_lines(f, p, ax) * front)
    eyes(rgb, f, p, ax, front)
    brows(rgb, f, p, ax, front)


def upper_lines(f: Surface, p: Params, ax) -> np.ndarray:
    """Wrinkles of brow, nose bridge and outer eye, from a feeling or from age: darkness 0..1."""
    dy = f.y - at(p["eye_y"])
    waves = np.maximum(np.cos(dy * 45 + 3 * f.x * f.x), 0)
    brow = edge(0.14 - np.abs(dy + 0.46), 0.1) * edge(0.55 - ax, 0.2)
    bridge = edge(0.13 - ax, 0.08) * edge(0.12 - np.abs(dy - 0.14), 0.1)
    corner = edge(0.07 - np.abs(ax - at(p["eye_x"] + 0.31)), 0.06) * edge(0.15 - np.abs(dy), 0.1)
    upright = edge(0.025 - np.abs(ax - 0.075), 0.045) * edge(0.13 - np.abs(dy + 0.22), 0.1)
    brow *= at(0.34 * p["forehead"].clip(0) + 0.16 * p["old"])
    bridge *= at(0.42 * p["nose"])
    corner *= at(0.26 * p["squint"].clip(0) + 0.16 * p["old"])
    return waves * (brow + bridge + corner) + upright * at(0.45 * p["furrow"].clip(0))


def eyes(rgb, f: Surface, p: Params, ax, front) -> None:
    """Both eyes at once, folded at the middle: socket, white, iris, pupil, lashes."""
    e = (ax - at(p["eye_x"])) / at(p["eye_w"])
    arc = 1 - e * e
    dy = f.y - at(p["eye_y"]) - 0.02 * e
    darken(rgb, 0.16 * np.clip(0.5 + 0.5 * arc - 10 * dy * dy, 0, 1) * front)
    opening = np.clip(1 + p["lid"], 0.15, 2) * p["eye_h"]
    floor = np.clip(0.7 - 0.8 * p["squint"].clip(0), 0.05, 1) * p["eye_h"]
    lid = dy + at(opening) * arc
    white = edge(np.minimum(lid, at(floor) * arc - dy), f.aa) * front
    light = at(0.5 + 0.35 * p["ambient"])[:, :, 0]
    paint(rgb, white, row(232, 228, 222) * p["tint"] * light)
    look = ax - at(p["eye_x"]) - np.sign(f.x) * at(p["gaze_x"])
    ray = np.sqrt(look * look + (dy - at(p["gaze_y"] - 0.015)) ** 2)
    paint(rgb, edge(0.10 - ray, f.aa) * white, p["iris"])
    paint(rgb, edge(0.045 - ray, f.aa) * white, p["iris"] * 0.15)
    lash = edge(0.035 - np.abs(lid), f.aa) * edge(1.05 - np.abs(e), 0.2) * front
    paint(rgb, lash * np.float32(0.85), p["skin"] * 0.2)


def brows(rgb, f: Surface, p: Params, ax, front) -> None:
    """Both brows: `brow` lifts them, `inner` lifts their inner ends more."""
    b = (ax - at(p["eye_x"] + 0.02)) / at(p["eye_w"] * 1.3)
    height = p["eye_y"] - p["brow_gap"] - p["brow"] - 0.3 * p["inner"]
    slope = 0.6 * p["inner"] - p["brow_tilt"]  # y grows outwards when the inner ends are up
    middle = at(height) + at(slope) * b + 0.05 * b * b
    stroke = at(p["brow_thick"]) * (1.1 - 0.35 * b) - np.abs(f.y - middle)
    cover = edge(stroke, f.aa) * edge(1 - np.abs(b), 0.3) * front
    cover *= np.clip(0.85 + 0.2 * texture(f, p["texture"], 40, 12), 0, 1)
    paint(rgb, cover, p["hair"] * 0.5 + p["skin"] * 0.08)


def nose(rgb, f: Surface, p: Params) -> None:
    """Stands out of the face: its tip moves against the surface when the head turns."""
    lift = 0.16 / np.maximum(f.turn[:, 2, 2], 0.4)
    ax = np.abs(f.x - at(f.turn[:, 0, 2] * lift))
    y = f.y - at(p["nose_y"] + f.turn[:, 1, 2] * lift)
    width = at(p["nose_w"])
    front = np.clip(f.z * 4, 0, 1)
    ridge = np.clip(1 - (ax / width * 1.6) ** 2, 0, 1) * edge(0.14 - np.abs(y + 0.2), 0.2)
    flank = edge(0.05 - np.abs(ax - width * (0.75 + 0.4 * y)), 0.08)
    flank *= edge(0.14 - np.abs(y + 0.16), 0.15)
    tip = np.clip(1 - (ax / width) ** 2 - 49 * y * y, 0, 1)
    darken(rgb, (0.14 * flank - 0.12 * ridge - 0.14 * tip) * front)
    hole = 1 - ((ax - width * 0.5) / 0.055) ** 2 - ((y - 0.075) / 0.035) ** 2
    wing = edge(0.03 - np.abs(np.sqrt((ax - width * 0.72) ** 2 + y * y) - 0.09), f.aa)
    paint(rgb, (0.7 * edge(hole * 0.02, f.aa) + 0.2 * wing) * front, p["skin"] * 0.25)


def lower_face(rgb, f: Surface, p: Params) -> None:
    """The folds from nose to mouth, and the mouth."""
    front = np.clip(f.z * 4, 0, 1)
    drop = f.y - at(p["nose_y"])
    bend = np.abs(f.x) - 0.22 - 0.5 * drop
    fold = edge(0.03 - np.abs(bend), 0.06) * edge(0.16 - np.abs(drop - 0.2), 0.1)
    darken(rgb, fold * at(0.30 * p["fold"].clip(0) + 0.12 * p["old"]) * front)
    m = f.x / at(p["mouth_w"] * (1 + p["width"]))
    side = np.maximum(m * np.sign(at(p["asym"])), 0)
    line = f.y - at(p["mouth_y"] - 0.5 * p["upper"] * (p["nose"] > 0))
    line = line - at(p["smile"]) * (0.4 - m * m) + at(np.abs(p["asym"])) * side * side
    arch = np.sqrt(np.maximum(1 - m * m, 0))
    lips(rgb, f, p, m, line, arch, front)


def lips(rgb, f: Surface, p: Params, m, line, arch, front) -> None:
    """`m` across the mouth (-1..1), `line` below its middle line, `arch` its half-ellipse."""
    ends = edge((1 - np.abs(m)) * at(p["mouth_w"]), f.aa) * front
    top, bottom = line + at(p["upper"]) * arch, at(p["lower"]) * arch - line
    thick = p["lip"] * (1 - 0.65 * p["press"])
    shadow = edge(0.05 - np.abs(bottom + at(1.25 * p["lip"] + 0.08)), 0.08)
    darken(rgb, 0.12 * shadow * edge(0.6 - np.abs(m), 0.3) * front)
    red = p["skin"] * row(0.90, 0.62, 0.60)
    red = red + p["lip_red"][:, None] * (row(165, 45, 60) - red)
    lip = np.minimum(top + at(thick) * arch, bottom + at(1.25 * thick) * arch)
    light = (0.55 + 0.35 * p["ambient"])[:, None] * p["tint"]
    paint(rgb, edge(lip, f.aa) * ends, red * light)
    gap = np.minimum(top, bottom)
    paint(rgb, edge(gap + 0.012, f.aa) * ends * np.float32(0.9), red * 0.18)
    teeth = edge(0.085 - np.abs(top - 0.05), f.aa)
    teeth = np.maximum(teeth, edge(0.06 - bottom, f.aa) * at(p["press"] > 0.4))
    teeth *= edge(gap - 0.01, f.aa) * ends * at(np.minimum(p["teeth"] * 2, 1))
    paint(rgb, teeth, row(232, 226, 212) * light)


# ---------------------------------------------------------------- hair, ears, and what is worn


def hair_behind(canvas, f: Surface, p: Params, strands) -> None:
    """The hair that stands out behind the head; long hair falls to the shoulders."""
    crown = edge(f.inside * np.float32(0.5) + at(0.45 * p["volume"]), f.aa)
    crown *= edge(-f.t, 6 * f.aa)
    crown *= at(~p["bald"])
    for i in np.flatnonzero(p["long_hair"]):
        s, t = f.s[i], f.t[i]
        fall = 1.0 + 0.3 * p["volume"][i] - np.abs(s) / (1 + 0.1 * np.maximum(t, 0))
        fall = np.minimum(fall, np.minimum(1.55 - t, t + 0.3))
        crown[i] = np.maximum(crown[i], edge(fall, f.aa[i]))
    shade = strands * np.float32(0.10)
    shade += np.float32(0.8)
    blend(canvas, crown, (shade * at(channel) for channel in (p["hair"] * p["tint"]).T))


def ears(rgb, f: Surface, p: Params) -> None:
    """Two ears and, under them, earrings; the head, drawn later, hides the far one."""
    for x in (-1.03, 1.03):
        s, t, _ = (f.turn @ row(x, 0.05, -0.1)).T
        corners = s[:, None] + _EAR[0], t[:, None] + _EAR[1]
        within(rgb, frame(f, pixels(f, *corners), 6), p, partial(_ear, s=s, t=t))


_EAR = np.array([(i, j) for i in (-0.15, 0.15) for j in (-0.26, 0.49)], np.float32).T


def _ear(rgb, f: Surface, p: Params, s, t) -> None:
    ds, dt = f.s - at(s), f.t - at(t)
    skin = p["skin"] * p["tint"] * (0.5 + 0.35 * p["ambient"])[:, None]
    lobe = 1 - (ds * 7) ** 2 - (dt * 4) ** 2
    paint(rgb, edge(lobe * 0.1, f.aa) * at(~p["long_hair"]), skin)
    ring = 1 - (ds * 9) ** 2 - ((dt - 0.36) * 8) ** 2
    gold = np.tile(row(235, 205, 110), (len(skin), 1))
    paint(rgb, edge(ring * 0.06, f.aa) * at(p["earrings"]), gold)


def hair_before(canvas, f: Surface, p: Params, strands) -> None:
    """Hair over the forehead and the sides of the head, with or without bangs."""
    front = f.x * f.x
    front *= at(np.where(p["bangs"], -0.05, 0.55))
    front += at(np.where(p["bangs"], p["eye_y"] - 0.28, p["hairline"]))
    front -= f.y
    front += strands * at(0.03 + 0.05 * p["bangs"])
    side = np.minimum(at(np.where(p["long_hair"], 0.28, 0.02)) - f.z, at(p["long_hair"] * 9) - f.y)
    cover = edge(np.maximum(front, side, out=front), 1.5 * f.aa)
    cover *= edge(f.inside * np.float32(0.5) + np.float32(0.02), f.aa)
    cover *= at(~p["bald"])
    shade = strands * np.float32(0.12)
    shade -= f.y * np.float32(0.1)
    shade += np.float32(0.95)
    blend(canvas, cover, (shade * at(channel) for channel in (p["hair"] * p["tint"]).T))


def beard(canvas, f: Surface, p: Params) -> None:
    """Dense stubble on jaw and upper lip that leaves the lips free."""
    within(canvas, window(f, p, 0 * p["eye_x"], 0 * p["eye_x"] + 0.74, (1.0, 0.76), 4), p, _beard)


def _beard(rgb, f: Surface, p: Params) -> None:
    ax, my = np.abs(f.x), f.y - at(p["mouth_y"])
    jaw = np.minimum(my + 0.62 * np.clip(ax * 2.2 - 0.77, 0, 1), 1.5 * f.z)
    lip = 0.085 - np.abs(my + at(p["upper"] + 0.17) - 0.25 * f.x * f.x)
    lip = np.minimum(0.40 - ax, lip)
    grown = np.maximum(jaw - at(9 * ~p["beard"]), lip - at(9 * ~p["mustache"]))
    above, below = p["lip"] + p["upper"], 1.3 * p["lip"] + p["lower"]
    tall = np.where(my < 0, at(above), at(below))
    mouth = 1 - (f.x / at(p["mouth_w"] * (1 + p["width"]) * 1.15)) ** 2 - (my / tall) ** 2
    cover = edge(grown, 2 * f.aa) * edge(-mouth, 0.33) * edge(f.inside, f.aa)
    cover *= np.clip(0.82 + 0.18 * texture(f, p["texture"] + 9, 30, 18), 0, 1)
    paint(rgb, cover, p["hair"] * p["tint"] * 0.85)


def glasses(canvas, f: Surface, p: Params) -> None:
    """Rims, bridge and arms, a little in front of the face."""
    within(canvas, window(f, p, 0 * p["eye_x"], p["eye_y"] + 0.03, (1.0, 0.40), 4), p, _glasses)


def _glasses(rgb, f: Surface, p: Params) -> None:
    lift = 0.08 / np.maximum(f.turn[:, 2, 2], 0.4)
    ax = np.abs(f.x - at(f.turn[:, 0, 2] * lift))
    y = f.y - at(p["eye_y"] + 0.03 + f.turn[:, 1, 2] * lift)
    ray = np.sqrt(((ax - at(p["eye_x"] + 0.01)) / 0.30) ** 2 + (y / 0.235) ** 2)
    rim = 0.04 - np.abs(ray - 1) * 0.26
    bridge = np.minimum(0.035 - np.abs(y + 0.06), 0.12 - ax)
    arm = np.minimum(0.035 - np.abs(y + 0.05), ax - at(p["eye_x"] + 0.29))
    cover = edge(np.maximum(np.maximum(rim, bridge), arm), f.aa)
    cover *= edge(f.inside, f.aa) * np.clip(f.z * 4, 0, 1)
    paint(rgb, cover, p["glass_colour"])


def hat(canvas, f: Surface, p: Params) -> None:
    """A cap with a darker brim."""
    rgb = canvas[f.picks]
    rim = -0.52 + 0.12 * f.x * f.x - f.y
    cap = edge(np.minimum(f.inside * 0.5 + 0.14, np.minimum(rim, 0.35 - f.t)), f.aa)
    paint(rgb, cap, p["hat_colour"])
    brim = np.minimum(0.11 - np.abs(rim - 0.05), f.inside * 0.5 + 0.22)
    paint(rgb, edge(np.minimum(brim, 0.35 - f.t), f.aa), p["hat_colour"] * 0.55)
    canvas[f.picks] = rgb


# ---------------------------------------------------------------- forgery


def inner_mask(f: Surface, p: Params) -> np.ndarray:
    """float32 [n,h,w] in 0..1: where a forgery replaces the face; zero outside an ellipse."""
    y = f.y - 0.28
    oval = 0.5 - 0.5 * (f.x / 0.80) ** 2 - 0.5 * (y / 0.84) ** 2
    return np.clip(oval / at(p["swap_soft"]), 0, 1) * (f.z > 0)


def swap(rgb, f: Surface, p: Params, light) -> None:
    """Lays a donor's inner face over the target's, as face-swap forgeries do."""
    middle = 0 * p["eye_y"]
    g = window(f, p, middle, middle + 0.28, (0.82, 0.87))
    within(rgb, g, p, partial(_swap, light=piece(light[:, None], g)))


def _swap(rgb, f: Surface, p: Params, light) -> None:
    donor = Rows(p, slice(None))
    donor.update({name: p[f"donor {name}"] for name in SWAPPED})
    donor["skin"] = 0.75 * p["skin"] + 0.25 * donor["skin"]  # as after colour transfer
    layer = face(f, donor, light[:, 0])
    layer *= p["swap_gain"].astype(np.float32)[:, :, None, None]
    blur(layer, p["swap_blur"])
    blend(rgb, inner_mask(f, p), np.moveaxis(layer, 1, 0))
