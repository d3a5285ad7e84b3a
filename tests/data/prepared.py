"""What the tests of readers share: pictures to draw, a set to prepare and to read again."""

import numpy as np
import simplejpeg

from hmtl_jax import prepare
from hmtl_jax.data import records
from tests import tiny


def picture(path, *seed, size=(24, 24)):
    """Writes a JPEG of noise, or a PNG by its name, and returns its pixels before encoding."""
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(simplejpeg.encode_jpeg(pixels, 95))
    return pixels


def read(name, source, data_dir, /, **options):
    """Prepares a set of a few pictures and returns its records by split."""
    options = {"allow_partial": True, "progress": False, **options}
    folder = prepare.prepare(name, source, data_dir, **options)
    counts = records.open_split(data_dir, folder.parent.name, _any_split(folder)).metadata["counts"]
    found = {}
    for split in counts:
        opened = records.open_split(data_dir, folder.parent.name, split)
        found[split] = [opened[index] for index in range(len(opened))]
    return found


def refusal(name, source, /, **options):
    """The sentence with which a source is refused."""
    return tiny.refused(read, name, source, source.parent / "refused", **options)


def keys(found, split):
    return [record["key"] for record in found[split]]


def edit(path, old, new):
    """Replaces the first `old` in a text file, which must be there."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def _any_split(folder):
    return sorted(folder.glob("*.array_record*"))[0].name.split("-")[1].split(".")[0]
