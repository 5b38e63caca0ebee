"""One picture file, decoded as a viewer shows it, or refused."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pipeline.sources.notes import Notes
from pipeline.sources.raw import MAX_IMAGE_BYTES

Mode = Literal["L", "RGB"]

# Formats by content, not by name. None of them runs a program or opens another file.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".webp"),
    *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".apng", ".mpo"),
}
_STARTS = (
    *(b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\x00", b"MM\x00*"),
    *(b"P1", b"P2", b"P3", b"P4", b"P5", b"P6"),
)
_GREY = {"1", "L", "LA", "La"}
_COLOUR = {"P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"}
_PNG_DEPTH_AT = 24  # the byte of a PNG file that says how many bits a sample has
_TIFF_DEPTH = 258  # the tag of a TIFF file that says the same
_WHITE = 255


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture: ``pixels`` are (C, H, W) uint8, C is 1 for grey ones."""

    pixels: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        channels, height, width = self.pixels.shape
        return channels, height, width

    @property
    def mode(self) -> Mode:
        """Whether it is grey or colour."""
        return "L" if len(self.pixels) == 1 else "RGB"

    def __str__(self) -> str:
        kind = "grey" if self.mode == "L" else "colour"
        return f"{self.pixels.shape[2]} × {self.pixels.shape[1]} pixels, {kind}"


def looks_like_picture(start: bytes) -> bool:
    """Say whether a file's first bytes are those of a format that is read."""
    webp = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    return webp or start.startswith(_STARTS)


def decode(data: bytes, where: str, notes: Notes) -> Picture:
    """Decode a picture as a viewer shows it.

    The orientation that a camera noted is applied. Transparent parts are laid on white
    and further frames left out, both noted. Colour profiles are not applied.

    Raises
    ------
    ValueError — if it is no whole picture of a format that is read, has more than 8
        bits a sample, or decodes to too much.
    """
    try:
        with warnings.catch_warnings():
            # Pillow only warns of large ones, and of damaged metadata.
            warnings.simplefilter("ignore")
            return _decode(data, where, notes)
    except _RefusedError as err:
        raise ValueError(f"`images` must {err}") from err
    except Image.DecompressionBombError as err:
        raise ValueError(
            f"`images` must have at most {MAX_IMAGE_BYTES} bytes when decoded; got "
            f"many more at {where} ({err}). Make them smaller."
        ) from err
    except UnidentifiedImageError as err:
        raise ValueError(
            f"`images` must be whole image files; got {where}, which is none that can "
            "be read. Replace or remove it."
        ) from err
    except Exception as err:  # Pillow's readers raise nearly anything over damage
        raise ValueError(
            f"`images` must be whole image files; got {where} ({err}). Replace or "
            "remove it."
        ) from err


class _RefusedError(Exception):
    """What a picture must be; the rest of the sentence."""


def _decode(data: bytes, where: str, notes: Notes) -> Picture:
    Image.init()  # Pillow loads only some formats by itself
    image: Image.Image = Image.open(io.BytesIO(data), formats=FORMATS)
    width, height = image.size
    grey = image.mode in _GREY
    if not 0 < width * height * (1 if grey else 3) <= MAX_IMAGE_BYTES:
        raise _RefusedError(
            f"have at most {MAX_IMAGE_BYTES} bytes when decoded; got {width} × "
            f"{height} pixels at {where}. Make them smaller."
        )
    if _more_than_8_bits(image, data):
        raise _RefusedError(
            f"have 8 bits a sample; got more at {where}. Convert it to 8 bits, or "
            "save float32 arrays as npz to keep them all."
        )
    # In an MPO the further ones are a camera's preview or a second eye's view.
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
        notes.add("images of several frames, of which the first was read", where)
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        image = _on_white(image, where, notes)
    pixels = np.asarray(image.convert("L" if grey else "RGB"))
    return Picture(pixels[None] if grey else pixels.transpose(2, 0, 1))


def _more_than_8_bits(image: Image.Image, data: bytes) -> bool:
    """Say so also of files that Pillow would cut to their upper bytes."""
    if image.mode not in _GREY | _COLOUR:
        return True
    if image.format == "PNG":
        return data[_PNG_DEPTH_AT] > 8
    if image.format == "TIFF":
        bits = image.tag_v2.get(_TIFF_DEPTH, 1)  # type: ignore[attr-defined]
        return bool(max(bits if isinstance(bits, tuple) else (bits,)) > 8)
    return False


def _on_white(image: Image.Image, where: str, notes: Notes) -> Image.Image:
    layer = image.convert("RGBA")
    if np.asarray(layer)[..., 3].min() == _WHITE:
        return image  # opaque everywhere
    notes.add("images with transparent parts, which were laid on white", where)
    ground = Image.new("RGBA", layer.size, (_WHITE, _WHITE, _WHITE, _WHITE))
    return Image.alpha_composite(ground, layer)
