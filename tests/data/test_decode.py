"""Every kind of picture becomes RGB uint8 as Pillow shows it, or one sentence says why not."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps

from hmtl_jax import errors
from hmtl_jax.data import decode


def smooth(height: int, width: int) -> np.ndarray:
    """Gradients: different in each channel and along each axis, and kind to lossy formats."""
    y, x = np.mgrid[0:height, 0:width]
    red = 255 * y / (height - 1)
    green = 255 * x / (width - 1)
    blue = 255 * (1 - y / (height - 1)) * (x / (width - 1))
    return np.stack([red, green, blue], axis=-1).round().astype(np.uint8)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def mean_difference(left: np.ndarray, right: np.ndarray) -> float:
    assert left.shape == right.shape
    return float(np.abs(left.astype(np.float64) - right).mean())


RGB = smooth(40, 56)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_give_the_very_pixels(kind):
    image = decode.decode(encode(Image.fromarray(RGB), kind))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, RGB)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_lossy_formats_are_rgb_not_bgr(kind):
    image = decode.decode(encode(Image.fromarray(RGB), kind, quality=95))
    assert mean_difference(image, RGB) < 2


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_grey_has_three_equal_channels(kind):
    image = decode.decode(encode(Image.fromarray(RGB[..., 0]), kind))
    assert image.shape == RGB.shape
    assert mean_difference(image, np.repeat(RGB[..., :1], 3, axis=-1)) < 1


def test_alpha_is_dropped():
    alpha = np.full((*RGB.shape[:2], 1), 7, np.uint8)
    image = Image.fromarray(np.concatenate([RGB, alpha], axis=-1))
    np.testing.assert_array_equal(decode.decode(encode(image, "PNG")), RGB)


@pytest.mark.parametrize("mode", ["P", "1", "LA"])
def test_palette_and_bits_as_pillow(mode):
    image = Image.fromarray(RGB).convert("L" if mode == "LA" else "RGB").convert(mode)
    expected = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(decode.decode(encode(image, "PNG")), expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_scaled(channels):
    levels = np.linspace(0, 65535, 40 * 56).round().astype(np.uint16).reshape(40, 56, 1)
    encoded = cv2.imencode(".png", np.repeat(levels, channels, axis=-1))[1].tobytes()
    expected = np.repeat((levels / 257.0).round().astype(np.uint8), 3, axis=-1)
    np.testing.assert_array_equal(decode.decode(encoded), expected)


FORMATS = {
    ("PNG", 8): ".png", ("PNG", 16): ".png", ("TIFF", 8): ".tiff", ("TIFF", 16): ".tiff",
    ("PPM", 8): ".ppm", ("PPM", 16): ".ppm", ("BMP", 8): ".bmp", ("WebP", 8): ".webp",
}  # fmt: skip


@pytest.mark.parametrize("channels", ["grey", "RGB", "RGBA"])
@pytest.mark.parametrize(("kind", "bits"), FORMATS)
def test_known_pixels_come_back_from_every_depth_and_channel_count(kind, bits, channels):
    if kind == "PPM" and channels != "RGB":
        pytest.skip("OpenCV writes PPM in RGB alone")
    dtype, factor = {8: (np.uint8, 1), 16: (np.uint16, 257)}[bits]
    bgra = np.zeros((8, 9, 4), dtype)
    bgra[:] = np.array((50, 100, 200, 7), dtype) * factor
    shown = {"grey": bgra[..., 2], "RGB": bgra[..., :3], "RGBA": bgra}[channels]
    lossless = [cv2.IMWRITE_WEBP_QUALITY, 101] if kind == "WebP" else []
    written, encoded = cv2.imencode(FORMATS[kind, bits], shown, lossless)
    assert written
    expected = (200, 200, 200) if channels == "grey" else (200, 100, 50)
    for _ in range(3):  # memory that nobody has written differs from one reading to the next
        image = decode.decode(encoded.tobytes())
        np.testing.assert_array_equal(image, np.broadcast_to(np.uint8(expected), (8, 9, 3)))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "GIF", "PPM", "JPEG2000", "AVIF"])
def test_every_mode_of_a_format_is_as_pillow_shows_it(mode, kind):
    grey = Image.fromarray(RGB).convert("L")
    by_way_of = {"LA": grey, "PA": Image.fromarray(RGB).convert("P")}
    try:
        encoded = encode(by_way_of.get(mode, Image.fromarray(RGB)).convert(mode), kind)
    except (OSError, ValueError, KeyError):
        pytest.skip(f"Pillow writes no {mode} {kind}")
    if (mode, kind) in (("CMYK", "JPEG2000"), ("YCbCr", "JPEG2000")):
        pytest.skip("a JPEG 2000 in a colour space that OpenCV does not tell")
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    assert mean_difference(decode.decode(encoded), expected) < 1


def test_float_pixels_are_refused():
    encoded = cv2.imencode(".tiff", RGB.astype(np.float32) / 255)[1].tobytes()
    with pytest.raises(errors.UserError, match="float32 pixels; convert it"):
        decode.decode(encoded)


def without_adobe_segment(jpeg: bytes) -> bytes:
    start = jpeg.index(b"\xff\xee")
    (length,) = struct.unpack_from(">H", jpeg, start + 2)
    return jpeg[:start] + jpeg[start + 2 + length :]


@pytest.mark.parametrize("adobe", [True, False])
def test_cmyk_jpeg_as_pillow(adobe):
    # A K of its own: Pillow's conversion from RGB leaves K empty.
    cmyk = np.dstack([RGB, np.broadcast_to(np.arange(0, 224, 4, dtype=np.uint8), (40, 56))])
    encoded = encode(Image.fromarray(cmyk, "CMYK"), "JPEG", quality=98)
    encoded = encoded if adobe else without_adobe_segment(encoded)
    expected = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    assert expected.std() > 20
    assert mean_difference(decode.decode(encoded), expected) < 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_as_pillow(kind, orientation):
    exif = Image.Exif()
    exif[0x010F] = "a camera"  # a tag before the orientation, as cameras write it
    exif[0x0112] = orientation
    encoded = encode(Image.fromarray(RGB), kind, exif=exif.tobytes())
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(encoded))))
    image = decode.decode(encoded)
    assert mean_difference(image, expected) < 1
    assert image.flags.c_contiguous


def test_a_damaged_exif_header_does_not_hide_the_picture():
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = encode(Image.fromarray(RGB), "JPEG", exif=exif.tobytes())
    broken = encoded.replace(exif.tobytes()[6:14], b"MM\0*\xff\xff\xff\xff")
    assert broken != encoded
    assert decode.decode(broken).shape == RGB.shape


@pytest.mark.parametrize("shape", [(40, 56), (300, 500), (20, 90), (31, 64), (64, 64)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_resized_picture_is_the_same_scene(kind, shape):
    image = decode.decode(encode(Image.fromarray(smooth(*shape)), kind, quality=95), 64)
    assert image.shape == (64, 64, 3)
    expected = Image.fromarray(smooth(*shape)).resize((64, 64), Image.Resampling.BOX)
    assert mean_difference(image, np.asarray(expected)) < 3


def test_shrinking_averages_and_does_not_alias():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    image = decode.decode(encode(Image.fromarray(stripes), "PNG"), 64)
    np.testing.assert_allclose(image, 128, atol=1)


def test_a_large_jpeg_is_read_scaled(monkeypatch):
    shapes = []
    monkeypatch.setattr(decode, "resize", lambda image, size: shapes.append(image.shape))
    decode.decode(simplejpeg.encode_jpeg(smooth(1024, 1300), 90), 96)
    assert shapes == [(128, 163, 3)]  # an eighth, and no side below 96


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.97])
def test_a_picture_cut_short_is_refused(kind, share, capfd):
    encoded = encode(Image.fromarray(smooth(200, 180)), kind)
    with pytest.raises(errors.UserError, match="damaged, cut short or no picture") as error:
        decode.decode(encoded[: int(len(encoded) * share)])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"quality": 30}])
@pytest.mark.parametrize("grey", [True, False])
def test_a_jpeg_whose_end_marker_alone_is_missing_is_whole(options, grey):
    image = Image.fromarray(smooth(200, 180))
    encoded = encode(image.convert("L") if grey else image, "JPEG", **options)
    whole = decode.decode(encoded)
    for lacking in (encoded[:-1], encoded[:-2], encoded[:-2] + bytes(50)):
        np.testing.assert_array_equal(decode.decode(lacking), whole)
    with pytest.raises(errors.UserError, match="damaged, cut short"):
        decode.decode(encoded[: len(encoded) * 2 // 3])


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_too_many_pixels_are_refused_from_the_header(kind, monkeypatch):
    encoded = encode(Image.fromarray(smooth(200, 180)), kind)
    assert decode.decode(encoded, max_pixels=200 * 180).shape == (200, 180, 3)
    monkeypatch.setattr(decode, "_read_jpeg", None)
    monkeypatch.setattr(decode, "_read_other", None)
    said = "200 x 180 pixels, more than the 35,999 that are allowed; .* --max_pixels"
    with pytest.raises(errors.UserError, match=said):
        decode.decode(encoded, max_pixels=200 * 180 - 1)


def test_bytes_of_another_kind_are_refused():
    with pytest.raises(errors.UserError, match="no picture"):
        decode.decode(b"<html>404 not found</html>")


def test_a_changed_png_byte_is_found():
    encoded = bytearray(encode(Image.fromarray(smooth(200, 180)), "PNG"))
    encoded[len(encoded) // 2] ^= 0xFF
    with pytest.raises(errors.UserError, match="damaged"):
        decode.decode(bytes(encoded))


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1)])
def test_a_picture_of_one_pixel_is_refused(shape):
    encoded = encode(Image.fromarray(np.zeros((*shape, 3), np.uint8)), "PNG")
    with pytest.raises(errors.UserError, match=f"{shape[0]} x {shape[1]} pixels"):
        decode.decode(encoded, 48)


def test_jpeg_of_a_kind_that_turbojpeg_refuses_is_still_read(monkeypatch):
    def refuse(_):
        raise ValueError("tjDecompressHeader3(): Could not determine subsampling level")

    monkeypatch.setattr(simplejpeg, "decode_jpeg_header", refuse)
    encoded = encode(Image.fromarray(RGB), "JPEG", quality=95)
    assert mean_difference(decode.decode(encoded), RGB) < 2
    with pytest.raises(errors.UserError, match="subsampling"):
        decode.decode(encoded[: len(encoded) // 2])


def test_a_png_that_claims_to_be_huge_is_refused():
    header = struct.pack(">IIBBBBB", 1_000_000, 1_000_000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    encoded = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk
    encoded += struct.pack(">I", zlib.crc32(chunk))
    with pytest.raises(errors.UserError, match="damaged"):
        decode.decode(encoded)
