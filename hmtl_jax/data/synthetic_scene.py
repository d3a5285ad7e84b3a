"""The space of a synthetic picture: the head as an ellipsoid, windows, background and camera.

Planes are float32 [n,h,w], colours planar [n,3,h,w] in 0..255. Every step treats each image on its
own (no sum over pixels), so an image does not depend on the batch that it is drawn in. Lengths are
in half-widths of the head ("head units"), y down.
"""

from functools import cached_property

import numpy as np

from hmtl_jax.data.synthetic_people import Dice

Params = dict[str, np.ndarray]
DEPTH = 1.08  # of the head, in half-widths
_BANK = 256  # side of the periodic noise that textures are read from


class Surface:
    """Where each pixel meets the head, on the whole picture or on a window of it.

    Planes [n,h,w]: `x`, `y` place on the head (head units), `z` towards the head's front (-1..1),
    `inside` 1 at the head's centre, 0 on its outline, `s`, `t` place in the picture along the
    head's own axes. A window may hold only the first few of these. `aa` [n,1,1] is one pixel in
    head units: the width of an edge.
    """

    def __init__(self, source, picks, corner, centre, pixel, turn, axes, home=()):
        self.source = source  # [m,k,h,w] the planes of these images, and perhaps of others
        self.picks = picks  # [n] which of them are these
        self.corner = corner  # [n,2] the window's first column and row
        self.centre = centre  # [n,2] the head's column and row in the whole picture
        self.pixel = pixel  # [n] one pixel in head units
        self.turn = turn  # [n,3,3] head axes to (s, t, towards the viewer)
        self.axes = axes  # [n,2,2] rows: the directions of s and t in the picture
        self.home: tuple[np.ndarray, ...] = (
            home  # of a window: its picks and corners in the canvas it is a part of
        )
        self.aa = at(pixel)

    @cached_property
    def planes(self) -> np.ndarray:
        """float32 [n,k,h,w]: copied only when somebody looks, and not if these are all."""
        whole = len(self.picks) == len(self.source)
        return self.source if whole else self.source[self.picks]

    x = property(lambda self: self.planes[:, 0])
    y = property(lambda self: self.planes[:, 1])
    z = property(lambda self: self.planes[:, 2])
    inside = property(lambda self: self.planes[:, 3])
    s = property(lambda self: self.planes[:, 4])
    t = property(lambda self: self.planes[:, 5])

    def rows(self, rows) -> "Surface":
        """The same for some of the images."""
        parts = (self.picks, self.corner, self.centre, self.pixel, self.turn, self.axes)
        return Surface(self.source, *(part[rows] for part in parts))


def at(values) -> np.ndarray:
    """[n] to float32 [n,1,1]."""
    return np.asarray(values, np.float32)[:, None, None]


def row(*values: float) -> np.ndarray:
    """float32 [k], for a colour."""
    return np.array(values, np.float32)


def edge(distance, width) -> np.ndarray:
    """Cover 0..1 of a pixel from its signed distance (inside positive)."""
    cover = distance / width
    cover += np.float32(0.5)
    return np.clip(cover, 0, 1, out=cover)


def paint(canvas, cover, colour) -> None:
    """Lays a colour [n,3] over canvas [n,3,h,w] in place, where cover [n,h,w] says."""
    blend(canvas, cover, (at(channel) for channel in np.asarray(colour).T))


def blend(canvas, cover, layers) -> None:
    """Lays three planes over the canvas in place, one by one: they stay in the cache."""
    for plane, layer in zip(np.moveaxis(canvas, 1, 0), layers, strict=True):
        step = layer - plane
        step *= cover
        plane += step


class Rows(dict):
    """The quantities of some of the images, picked when they are first asked for."""

    def __init__(self, p: Params, rows):
        super().__init__()
        self._whole, self._rows = p, rows

    def __missing__(self, name: str) -> np.ndarray:
        self[name] = self._whole[name][self._rows]
        return self[name]


# ---------------------------------------------------------------- the head in space


def rotation(yaw, pitch, roll) -> np.ndarray:
    """[n,3,3] from head axes (right, down, away from the face's front) to the picture's; degrees.

    Rx(pitch) · Ry(-yaw) · Rz(roll): positive yaw turns the nose to the left of the picture,
    positive pitch lifts it, positive roll tilts the head clockwise, as in 300W-LP.
    """
    a, b, c = (np.deg2rad(np.asarray(v, np.float64)) for v in (pitch, -yaw, roll))
    rx, ry, rz = (np.tile(np.eye(3), (len(a), 1, 1)) for _ in range(3))
    for matrix, angle, (i, j) in ((rx, a, (1, 2)), (ry, b, (2, 0)), (rz, c, (0, 1))):
        matrix[:, i, i] = matrix[:, j, j] = np.cos(angle)
        matrix[:, i, j], matrix[:, j, i] = -np.sin(angle), np.sin(angle)
    return rx @ ry @ rz


def surface(p: Params, size: int) -> Surface:
    """Meets every pixel's ray with the head, seen from afar: the near root of one quadratic."""
    turn = rotation(p["yaw"], p["pitch"], p["roll"])
    down = turn[:, :2, 1] / np.linalg.norm(turn[:, :2, 1], axis=1, keepdims=True)
    axes = np.stack([np.stack([down[:, 1], -down[:, 0]], 1), down], 1)
    turn[:, :2] = axes @ turn[:, :2]
    planes = np.empty((len(turn), 6, size, size), np.float32)
    _meet(planes, _lay(planes, p, axes), p, turn)
    picks, corner = np.arange(len(turn)), np.zeros((len(turn), 2), np.int64)
    centre = np.stack([p["centre_x"], p["centre_y"]], 1) * size
    pixel = (1 / (p["scale"] * size)).astype(np.float32)
    turn, axes = turn.astype(np.float32), axes.astype(np.float32)
    return Surface(planes, picks, corner, centre, pixel, turn, axes)


def _lay(planes, p: Params, axes) -> np.ndarray:
    """Fills s and t; returns s as it would be if the jaw did not narrow."""
    size = planes.shape[2]
    pixels = (np.arange(size) + 0.5) / size
    dx = ((pixels - p["centre_x"][:, None]) / p["scale"][:, None])[:, None, :]
    dy = ((pixels - p["centre_y"][:, None]) / p["scale"][:, None])[:, :, None]
    for k in range(2):
        across, along = dx * axes[:, k, 0, None, None], dy * axes[:, k, 1, None, None]
        np.add(across.astype(np.float32), along.astype(np.float32), out=planes[:, 4 + k])
    low = np.maximum(planes[:, 5], 0)  # the lower a pixel, the farther out on the head it lies
    low *= low
    low *= at(p["jaw"])
    low += 1
    low *= planes[:, 4]
    return low


def _meet(planes, s, p: Params, turn) -> None:
    """Fills x, y, z, inside: |u s + v t + w depth| = 1 with the head scaled to a sphere."""
    t, inside = planes[:, 5], planes[:, 3]
    aspect = p["aspect"].astype(np.float64)
    radii = np.stack([np.ones_like(aspect), aspect, np.full_like(aspect, DEPTH)], 1)
    u, v, w = np.moveaxis(turn / radii[:, None], 1, 0)
    ww, uw, vw = (w * w).sum(1), (u * w).sum(1), (v * w).sum(1)
    uu, uv, vv = (u * u).sum(1), (u * v).sum(1), (v * v).sum(1)
    np.multiply(s, at(uw * uw / ww - uu), out=inside)
    inside += t * at(2 * (uw * vw / ww - uv))
    inside *= s
    inside += t * t * at(vw * vw / ww - vv)
    inside += 1
    depth = np.maximum(inside, 0)
    np.sqrt(depth, out=depth)
    depth *= at(ww**-0.5)
    depth -= s * at(uw / ww)
    depth -= t * at(vw / ww)
    for k, factor in enumerate((1, aspect, 1)):
        axis = np.multiply(s, at(u[:, k] * factor), out=planes[:, k])
        axis += t * at(v[:, k] * factor)
        axis += depth * at(w[:, k] * factor)


# ---------------------------------------------------------------- windows


def spot(f: Surface, p: Params, x, y, z) -> np.ndarray:
    """Pixels (column, row) [n,k,2] of points [n,k] of the head, within the planes of `f`."""
    s, t = np.moveaxis(np.stack([x, y, z], -1) @ np.swapaxes(f.turn, 1, 2), 2, 0)[:2]
    return pixels(f, s / (1 + p["jaw"][:, None] * np.maximum(t, 0) ** 2), t)


def pixels(f: Surface, s, t) -> np.ndarray:
    """Pixels (column, row) [n,k,2] of places [n,k] in the picture, given along the head's axes."""
    side = np.stack([s, t], -1) @ f.axes / f.pixel[:, None, None]
    return side + (f.centre - f.corner - 0.5)[:, None]


def window(f: Surface, p: Params, x, y, half, planes=3) -> Surface:
    """The part of `f` that shows head points up to `half` = (across, down) from (x, y) [n]."""
    across, down = _GRID * np.asarray(half, np.float32)[:, None]
    x = x[:, None] + across
    y = (y[:, None] + down) / p["aspect"][:, None]
    out = np.maximum(np.sqrt(x * x + y * y), 1)  # no farther than where the head turns away
    x, y = x / out, y / out
    z = np.sqrt(np.maximum(1 - x * x - y * y, 0))
    return frame(f, spot(f, p, x, y * p["aspect"][:, None], DEPTH * z), planes)


def frame(f: Surface, places, planes: int) -> Surface:
    """The part of `f` that holds the pixels [n,k,2]; only its first `planes` planes.

    All images of the batch get windows of one shape, the largest that one of them needs: what is
    drawn must have no cover outside its own extents.
    """
    first = np.floor(places.min(1)).astype(int) - _MARGIN
    limits = np.array(f.source.shape[:1:-1])
    shape = (np.ceil(places.max(1)).astype(int) + _MARGIN + 1 - first).max(0)
    shape = np.minimum(shape, limits)
    corner = np.minimum(np.maximum(first, 0), limits - shape)
    source = _cut(f.source[:, :planes], f.picks, corner, shape)
    kept = f.centre, f.pixel, f.turn, f.axes
    return Surface(source, np.arange(len(source)), f.corner + corner, *kept, (f.picks, corner))


_GRID = np.array([(i, j) for i in (-1, -0.5, 0, 0.5, 1) for j in (-1, 0, 1)], np.float32).T
_MARGIN = 3  # pixels, for soft edges, blur, and the bulge between the points of the grid


def piece(canvas, g: Surface) -> np.ndarray:
    """Copies what the window `g` shows out of a canvas [m,c,H,W]."""
    picks, corner = g.home
    return _cut(canvas, picks, corner, g.source.shape[:1:-1])


def _cut(array, picks, corner, shape) -> np.ndarray:
    width, height = shape
    out = np.empty((len(picks), array.shape[1], height, width), np.float32)
    for part, image, (column, row) in zip(out, picks.tolist(), corner.tolist(), strict=True):
        part[...] = array[image, :, row : row + height, column : column + width]
    return out


def put_back(canvas, g: Surface, parts) -> None:
    """Copies the pieces back to where they were taken from."""
    height, width = parts.shape[2:]
    picks, corner = g.home
    for part, image, (column, row) in zip(parts, picks.tolist(), corner.tolist(), strict=True):
        canvas[image, :, row : row + height, column : column + width] = part


# ---------------------------------------------------------------- textures


def _noise_bank() -> np.ndarray:
    """float32 [_BANK, _BANK], periodic, rough and smooth mixed, mean 0, deviation about 0.75."""
    d = Dice("noise bank", np.arange(_BANK * _BANK))
    fine = d.normal("fine").reshape(_BANK, _BANK)
    coarse = d.normal("coarse").reshape(_BANK, _BANK)
    for axis, step in ((0, 1), (0, 2), (1, 1), (1, 2)):
        coarse = coarse + np.roll(coarse, step, axis)
    return (0.6 * fine + 0.15 * coarse).astype(np.float32)


NOISE = _noise_bank()


def texture(f: Surface, offset, across, down) -> np.ndarray:
    """float32 [n,h,w]: the noise at head units times (across, down), from a person's own place."""
    column = f.x * np.float32(across)
    column += at(offset % _BANK + 2 * _BANK)
    row = f.y * np.float32(down)
    row += at(offset // _BANK % _BANK + 2 * _BANK)
    index = row.astype(np.int32)
    index &= _BANK - 1
    index *= _BANK
    index += column.astype(np.int32) & (_BANK - 1)
    return np.take(NOISE.reshape(-1), index)


# ---------------------------------------------------------------- behind and before the head


def _ruler(size: int):
    """Pixel centres in 0..1 as [1,1,S] and [1,S,1]."""
    ruler = ((np.arange(size, dtype=np.float32) + 0.5) / size)[None, None, :]
    return ruler, np.swapaxes(ruler, 1, 2)


def background(p: Params, size: int) -> np.ndarray:
    """float32 [n,3,S,S]: a soft gradient, stripes, or blobs."""
    d, (x, y) = p["back_dice"], _ruler(size)
    angle, striped = d[:, 0] * 2 * np.pi, p["back_kind"] == 1
    frequency = np.where(striped, 3 + 9 * d[:, 1], 0.5 + d[:, 1])
    ramp = x * at(np.cos(angle) * frequency) + at(d[:, 2])
    ramp = ramp + y * at(np.sin(angle) * frequency)
    ramp -= np.round(ramp)
    np.abs(ramp, out=ramp)
    ramp -= 0.25
    ramp *= at(np.where(striped, 6 + 20 * d[:, 3], 4))
    np.clip(ramp, -1, 1, out=ramp)
    for row in np.flatnonzero(p["back_kind"] == 2):
        ramp[row] = 0.4 * ramp[row] + _blobs(d[row, 4:13].reshape(3, 3), x[0], y[0])
    swing = (p["back_dice"][:, 13:16] - 0.5) * 90
    return p["back_colour"][:, :, None, None] + swing[:, :, None, None] * ramp[:, None]


def _blobs(places, x, y) -> np.ndarray:
    """Three round spots [S,S], light and dark, as products of a row and a column."""
    total = np.zeros((y.size, x.size), np.float32)
    for sign, (px, py, width) in zip((1.5, -1.5, 1.5), places, strict=True):
        narrow = 2 + 3 * width
        across = np.maximum(1 - ((x - px) * narrow) ** 2, 0)
        total += across * (sign * np.maximum(1 - ((y - py) * narrow) ** 2, 0))
    return total


def body(canvas, p: Params) -> None:
    """Neck and shoulders, in the lower part of the picture only."""
    size = canvas.shape[2]
    top = int(0.6 * size)
    x, y = _ruler(size)
    x = (x - at(p["centre_x"])) / at(p["scale"])
    y = (y[:, top:] - at(p["centre_y"])) / at(p["scale"])
    aa = at(1 / (p["scale"] * size))
    shade = p["skin"] * p["tint"] * (0.45 + 0.3 * p["ambient"])[:, None]
    lower = canvas[:, :, top:]
    paint(lower, edge(0.62 - np.abs(x), aa) * edge(y - 0.5, aa), shade)
    shoulder = 1.5 + 0.22 * np.maximum(x * x - 0.25, 0)
    paint(lower, edge(y - shoulder, aa), p["clothes"])


def occluder(canvas, p: Params) -> None:
    """A striped bar that comes in from a side of the picture and hides some of the face."""
    rows = np.flatnonzero(p["occluded"])
    if not rows.size:
        return
    d, (x, y) = p["occluder_dice"][rows], _ruler(canvas.shape[2])
    angle = d[:, 0] * 2 * np.pi
    sin, cos = at(np.sin(angle)), at(np.cos(angle))
    along = (x - 0.5) * cos + (y - 0.5) * sin - at(0.12 + 0.16 * d[:, 1])
    across = (y - 0.5) * cos - (x - 0.5) * sin - at(0.5 * d[:, 2] - 0.25)
    bar = np.minimum(along, at(0.09 + 0.12 * d[:, 3]) - np.abs(across))
    stripes = np.abs((across * at(8 + 20 * d[:, 4])) % 1 - 0.5) * at(d[:, 5] * 80)
    colours = (at(channel) - stripes for channel in p["occluder_colour"][rows].T)
    part = canvas[rows]
    blend(part, edge(bar, np.float32(1 / canvas.shape[2])), colours)
    canvas[rows] = part


# ---------------------------------------------------------------- camera


def blur(rgb, weight) -> None:
    """Three taps along each axis, in place; `weight` [n] is the share of each neighbour."""
    w = at(weight)[:, None]
    for view in (rgb, np.swapaxes(rgb, 2, 3)):
        sides = view[:, :, 2:] + view[:, :, :-2]
        sides *= w
        view[:, :, 1:-1] *= 1 - 2 * w
        view[:, :, 1:-1] += sides


def camera(rgb, p: Params) -> np.ndarray:
    """Blur, contrast, a tone curve and sensor noise: planar float32 to uint8 [n,S,S,3]."""
    blur(rgb, p["blur"])
    rgb *= at(p["contrast"] * p["exposure"])[:, None]
    rgb += at(118 * (1 - p["contrast"]) + p["brightness"])[:, None]
    curve = rgb * at(-p["curve"] / 255)[:, None]  # lifts or sinks the middle by curve / 4
    curve += at(1 + p["curve"])[:, None]
    rgb *= curve
    for image, start, noise in zip(rgb, p["grain"].tolist(), p["noise"], strict=True):
        image += (_grain(image.size, start) * noise).reshape(image.shape)
    np.clip(rgb, 0, 255, out=rgb)
    return np.ascontiguousarray(np.moveaxis(rgb.astype(np.uint8), 1, 3))


def _grain(count: int, start: int) -> np.ndarray:
    """`count` values of the noise from some place on; repeated where the bank is too small."""
    flat = NOISE.reshape(-1)
    start %= flat.size
    if start + count <= flat.size:
        return flat[start : start + count]
    return np.resize(np.roll(flat, -start), count)
