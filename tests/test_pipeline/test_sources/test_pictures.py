"""Pictures become what a viewer shows, or are refused."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image

from pipeline.sources import pictures
from pipeline.sources.notes import Notes
from pipeline.sources.pictures import decode, looks_like_picture

ORIENTATION = 0x112


@pytest.fixture
def colours(rng):
    return rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)


def packed(image, kind="png", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def seen(data, notes=None):
    """Return the pixels with their channels last, as Pillow has them."""
    return decode(data, "a picture", notes or Notes()).pixels.transpose(1, 2, 0)


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda x: x),
        (2, lambda x: x[:, ::-1]),
        (3, lambda x: x[::-1, ::-1]),
        (4, lambda x: x[::-1]),
        (5, lambda x: x.transpose(1, 0, 2)),
        (6, lambda x: np.rot90(x, -1)),
        (7, lambda x: x[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda x: np.rot90(x)),
    ],
)
@pytest.mark.parametrize("kind", ["png", "tiff", "jpeg", "webp"])
def test_decode__applies_the_orientation(colours, kind, orientation, turned):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    image = Image.fromarray(colours)
    options = {"lossless": True} if kind == "webp" else {}
    plain = seen(packed(image, kind, **options))
    np.testing.assert_array_equal(
        seen(packed(image, kind, exif=exif.tobytes(), **options)), turned(plain)
    )


def test_decode__lays_transparent_parts_on_white(colours):
    alpha = np.full((4, 6, 1), 255, np.uint8)
    alpha[0], alpha[1] = 0, 51  # nothing, and a fifth
    notes = Notes()
    image = Image.fromarray(np.concatenate([colours, alpha], axis=2))
    got = seen(packed(image), notes)
    assert (got[0] == 255).all()
    fifth = 255 - (255 - colours[1].astype(float)) / 5
    np.testing.assert_allclose(got[1], fifth, atol=1)
    np.testing.assert_array_equal(got[2:], colours[2:])
    (sentence,) = notes.sentences()
    assert sentence.startswith("Images with transparent parts, which were laid on")


def test_decode__an_icon_on_nothing_is_black_on_white():
    pixels = np.zeros((4, 4, 2), np.uint8)
    pixels[1:3, 1:3, 1] = 255  # grey with alpha: a black square
    got = seen(packed(Image.fromarray(pixels)))
    assert got.shape == (4, 4, 1)
    assert (got[1:3, 1:3] == 0).all()
    assert got.sum() == 12 * 255


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_decode__a_transparent_colour_is_white_too(mode):
    image = Image.new(mode, (2, 1))
    image.putpixel((0, 0), (9, 9, 9) if mode == "RGB" else 9)
    transparent = (0, 0, 0) if mode == "RGB" else 0
    if mode == "P":
        image.putpalette([7, 7, 7] * 10)
    got = seen(packed(image, transparency=transparent))
    assert (got[0, 1] == 255).all()
    assert (got[0, 0] == (7 if mode == "P" else 9)).all()


def test_decode__alpha_that_is_opaque_everywhere_changes_nothing(colours):
    image = Image.fromarray(colours)
    notes = Notes()
    opaque = image.copy()
    opaque.putalpha(255)
    np.testing.assert_array_equal(seen(packed(opaque), notes), colours)
    assert not notes.sentences()


@pytest.mark.parametrize("kind", ["gif", "png", "tiff", "webp"])
def test_decode__takes_the_first_frame_and_says_so(kind):
    frames = [Image.new("RGB", (4, 4), (i, i, i)) for i in (10, 200)]
    notes = Notes()
    data = packed(frames[0], kind, save_all=True, append_images=frames[1:])
    assert abs(int(seen(data, notes).max()) - 10) <= 2
    assert notes.sentences()[0].startswith("Images of several frames, of which the")


def png_of_16_bits(n_channels):
    """Return a PNG of one pixel with 16 bits a sample, which Pillow cannot write."""
    import zlib

    def chunk(kind, content):
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    head = struct.pack(">IIBBBBB", 1, 1, 16, 2 if n_channels == 3 else 6, 0, 0, 0)
    row = b"\0" + b"\x12\xff" * n_channels
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(row))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    "data",
    [
        png_of_16_bits(3),
        png_of_16_bits(4),
        packed(Image.fromarray(np.full((2, 2), 300, np.uint16))),
        packed(Image.fromarray(np.full((2, 2), 300, np.uint16)), "tiff"),
        packed(Image.fromarray(np.full((2, 2), 0.5, np.float32)), "tiff"),
    ],
)
def test_decode__refuses_more_than_8_bits(data):
    with pytest.raises(ValueError, match="8 bits a sample; got more at a picture"):
        seen(data)


@pytest.mark.parametrize(("mode", "shape"), [("1", 1), ("P", 3), ("CMYK", 3)])
def test_decode__other_modes_are_as_a_viewer_shows_them(mode, shape):
    image = Image.new("L", (3, 2), 255).convert("RGB").convert(mode)
    got = seen(packed(image, "tiff"))
    assert got.shape == (2, 3, shape)
    assert (got == 255).all()


def test_decode__two_bits_of_grey_reach_white():
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 85, 85, 85, 170, 170, 170, 255, 255, 255])
    image.putpixel((1, 0), 3)
    assert seen(packed(image, bits=2))[0, :, 0].tolist() == [0, 255]


@pytest.mark.parametrize(
    "data", [b"", b"hello", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\x89PNG\r\n\x1a\n"]
)
def test_decode__refuses_what_is_no_picture(data):
    with pytest.raises(ValueError, match="must be whole image files; got a picture"):
        seen(data)


def test_decode__refuses_every_cut_of_a_picture(colours):
    for kind in ("png", "jpeg", "gif", "bmp", "webp", "tiff"):
        data = packed(Image.fromarray(colours), kind)
        for stop in range(0, len(data) // 2, 7):
            with pytest.raises(ValueError, match="`images` must"):
                seen(data[:stop])


def test_decode__refuses_by_its_header_what_decodes_to_too_much(monkeypatch):
    data = packed(Image.new("L", (100, 100)))
    monkeypatch.setattr(pictures, "MAX_IMAGE_BYTES", 9_999)
    with pytest.raises(ValueError, match="at most 9999 bytes when decoded; got 100"):
        seen(data)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match="at most 9999 bytes when decoded"):
        seen(data)


def test_looks_like_picture__knows_every_format_that_is_read(colours):
    for kind in ("png", "jpeg", "gif", "bmp", "webp", "tiff", "ppm"):
        assert looks_like_picture(packed(Image.fromarray(colours), kind))
    assert not looks_like_picture(b"hello")
