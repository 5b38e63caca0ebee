"""Folders of class folders of images, plain or in a zip, decoded a piece at a time."""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from pipeline.sources.ordering import held_out, interleaved
from pipeline.sources.raw import (
    MAX_CLASSES,
    MAX_IMAGE_BYTES,
    Batch,
    RawDataset,
    RawSplit,
)
from pipeline.sources.streams import refuse_bomb, refuse_unsafe_name

SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"),
    *(".ppm", ".pgm"),
}
GREY_MODES = {"1", "L"}
SPLITS = {"train", "test"}

# What Pillow and zipfile raise over a file that is not what it should be.
UNREADABLE = (
    *(OSError, SyntaxError, EOFError, RuntimeError, NotImplementedError, zlib.error),
    *(zipfile.BadZipFile, Image.DecompressionBombError),
)

Reader = Callable[[str], bytes]  # member name → file content
Sample = tuple[str, int]  # member name, label


@contextmanager
def open_image_folder(source: Path) -> Iterator[RawDataset]:
    """Read ``train/<class>/*`` and ``test/<class>/*``, or ``<class>/*``, folder or zip.

    Classes are numbered in alphabetical order. Within a split the classes are
    interleaved, so that the first N samples, and the last ones, are balanced as the
    whole is. Without a ``test`` folder one image in six of every class is for testing.
    The first image decides between grey (one channel) and RGB; all must be of its size.
    Files that are not images by their suffix, and hidden ones, are left out.

    Raises
    ------
    FileNotFoundError — if there is no such folder or file.
    ValueError — if the layout is another, a member name is unsafe, the archive unpacks
        past the limit, or an image is damaged or of another size.
    """
    if source.is_dir():
        names = _files_under(source)
        yield _dataset(names, lambda name: (source / name).read_bytes(), source)
        return
    if not source.is_file():
        raise FileNotFoundError(
            "`source` must be a folder, or a zip, of class folders; got "
            f"{source}. Check the path after --from."
        )
    try:
        archive = zipfile.ZipFile(source)
    except zipfile.BadZipFile as err:
        raise ValueError(
            f"`source` must be a folder or a whole zip; got {source} ({err}). "
            "Pack the class folders again."
        ) from err
    with archive:
        members = archive.infolist()
        for info in members:
            refuse_unsafe_name(info.filename, source)
        refuse_bomb(sum(info.file_size for info in members), str(source))
        names = [info.filename for info in members if not info.is_dir()]
        yield _dataset(names, archive.read, source)


def _files_under(folder: Path) -> list[str]:
    found = []
    for parent, _, files in os.walk(folder):
        inside = Path(parent).relative_to(folder)
        found += [(inside / name).as_posix() for name in files]
    return found


def _dataset(names: Sequence[str], read: Reader, source: Path) -> RawDataset:
    splits, classes = _arrange(names, source)
    if "test" in splits:
        train, test = splits["train"], splits["test"]
    else:
        samples = splits["train"]
        mask = held_out(np.array([label for _, label in samples]))
        train = [s for s, for_test in zip(samples, mask, strict=True) if not for_test]
        test = [s for s, for_test in zip(samples, mask, strict=True) if for_test]
    if not test:
        raise ValueError(
            "`source` must hold images for testing, or six or more of a class; got "
            f"{len(train)} images in all at {source}. Add images or a test folder."
        )
    train, test = _interleave(train), _interleave(test)
    first = train[0][0]
    with _decoding(first, source):
        image = Image.open(io.BytesIO(read(first)))
        mode = "L" if image.mode in GREY_MODES else "RGB"
        width, height = image.size
    shape = (1 if mode == "L" else 3, height, width)
    if shape[0] * height * width > MAX_IMAGE_BYTES:
        raise ValueError(
            f"`images` must have at most {MAX_IMAGE_BYTES} bytes when decoded; got "
            f"{width} × {height} pixels at {source}: {first}. Make them smaller."
        )

    def split(samples: list[Sample]) -> RawSplit:
        def batches(rows: int, limit: int) -> Iterator[Batch]:
            for start in range(0, min(limit, len(samples)), rows):
                chosen = samples[start : min(start + rows, limit)]
                images = np.empty((len(chosen), *shape), dtype=np.uint8)
                for image, (name, _) in zip(images, chosen, strict=True):
                    image[:] = _decode(read, name, mode, shape, source)
                yield images, np.array([label for _, label in chosen], dtype=np.int64)

        return RawSplit(len(samples), batches)

    return RawDataset(
        train=split(train),
        test=split(test),
        image_shape=shape,
        dtype=np.dtype(np.uint8),
        class_names=classes,
        source=f"image-folder: {source.name}"
        + ("" if "test" in splits else ", one in six of each class for testing"),
        verified=False,
    )


def _arrange(
    names: Sequence[str], source: Path
) -> tuple[dict[str, list[Sample]], tuple[str, ...]]:
    """Return the samples of each split in alphabetical order, and the class names."""
    paths = sorted(path for name in names if _is_image(path := PurePosixPath(name)))
    skip = 0
    parts = [path.parts for path in paths]
    while (
        parts
        and len({p[skip] for p in parts if len(p) > skip}) == 1
        and min(len(p) for p in parts) - skip > 2
        and parts[0][skip] not in SPLITS
    ):
        skip += 1  # a folder around everything
    inner = [p[skip:] for p in parts]
    depths = {len(p) for p in inner}
    tops = {p[0] for p in inner if len(p) == 3}
    if depths == {2}:
        placed = [("train", p[0]) for p in inner]
    elif depths == {3} and "train" in tops <= SPLITS:
        placed = [(p[0], p[1]) for p in inner]
    else:
        got = sorted({"/".join(p[:-1]) or "." for p in inner})[:5]
        raise ValueError(
            "`source` must hold images as train/<class>/* and test/<class>/*, or as "
            f"<class>/*; got {'images in ' + ', '.join(got) if got else 'no image'} at "
            f"{source}. Arrange the folders so."
        )
    classes = sorted({name for split, name in placed if split == "train"})
    strange = sorted({name for _, name in placed} - set(classes))
    if strange or len(classes) > MAX_CLASSES:
        raise ValueError(
            f"`source` must have the same classes (at most {MAX_CLASSES}) in test as "
            f"in train; got {', '.join(strange) or len(classes)} at {source}. "
            "Correct the folders."
        )
    label = {name: index for index, name in enumerate(classes)}
    splits: dict[str, list[Sample]] = {}
    for path, (split, name) in zip(paths, placed, strict=True):
        splits.setdefault(split, []).append((path.as_posix(), label[name]))
    return splits, tuple(classes)


def _is_image(path: PurePosixPath) -> bool:
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return path.suffix.lower() in SUFFIXES and not hidden


def _interleave(samples: list[Sample]) -> list[Sample]:
    order = interleaved(np.array([label for _, label in samples]))
    return [samples[int(i)] for i in order]


def _decode(
    read: Reader, name: str, mode: str, shape: tuple[int, int, int], source: Path
) -> np.ndarray:
    """Return one image as (C, H, W) uint8."""
    with _decoding(name, source):
        image = Image.open(io.BytesIO(read(name)))
        kind = "L" if image.mode in GREY_MODES else "RGB"
        got = f"{image.size[0]} × {image.size[1]} pixels, mode {image.mode}"
        same_size = image.size == (shape[2], shape[1])
        if same_size and image.mode[:1] not in "IF" and (mode == "RGB" or kind == mode):
            pixels = np.asarray(image.convert(mode))
            return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)
    raise ValueError(
        f"`images` must all be {shape[2]} × {shape[1]} pixels of 8 bits, "
        f"{'grey' if mode == 'L' else 'colour'}; got {got} at {source}: {name}. "
        "Convert them to one size and kind."
    )


@contextmanager
def _decoding(name: str, source: Path) -> Iterator[None]:
    try:
        yield
    except UNREADABLE as err:
        raise ValueError(
            f"`images` must be whole image files; got {source}: {name} ({err}). "
            "Replace or remove it."
        ) from err
