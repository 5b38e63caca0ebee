"""Which file is a sample of which class and split, by the folders it lies in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipeline.sources.members import Members
from pipeline.sources.notes import Notes
from pipeline.sources.pictures import SUFFIXES, looks_like_picture

Sample = tuple[str, int]  # file name, label
Parts = tuple[str, ...]

SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
# Files that may lie beside images and are left out, which is said.
DOCUMENTS = {
    *(".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml"),
    *(".html", ".htm", ".pdf", ".db", ".ini", ".log", ".py", ".ipynb", ".mat"),
    *(".npy", ".npz", ".pkl", ".parquet", ".docx", ".xlsx", ".url"),
}
TEXTS = {"readme", "license", "licence", "copying", "notice", "credits"}  # no suffix
_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Layout:
    """The samples of each split in alphabetical order, and the class names."""

    splits: dict[str, list[Sample]]  # "train", and "val" and "test" where there are
    classes: tuple[str, ...]


def arrange(members: Members, notes: Notes) -> Layout:
    """Tell splits and classes from the folders.

    Files lie in ``<split>/<class>/`` or ``<class>/``, inside folders around everything
    or not; folders between class and file, such as ``images``, must be the same for
    all of a split. Every file of a class folder is a sample, but for documents.

    Raises
    ------
    ValueError — if the folders are others, a folder has no image, a file of a class is
        none, or a class of val or test is not in train.
    """
    images, others = _sorted_out(members)
    paths = [PurePosixPath(name).parts for name in images]
    n_around = _n_around(paths)
    tops = {path[n_around] for path in paths}
    deep = min((len(path) for path in paths), default=0) - n_around > 2
    in_splits = deep and any(SPLITS.get(top.lower()) == "train" for top in tops)
    n_above = n_around + in_splits  # folders above the class folders
    _check_folders(paths, n_around, n_above, members)
    placed = [
        (SPLITS[path[n_around].lower()] if in_splits else "train", path[n_above])
        for path in paths
    ]
    inside = {path[: n_above + 1] for path in paths}  # the class folders
    _refuse_empty(members, inside, n_around, in_splits, notes)
    _leave_out(others, inside, members, notes)
    return _numbered(images, placed, members)


def _sorted_out(members: Members) -> tuple[list[str], list[str]]:
    """Return the names of images, in order, and those of all other files."""
    images: list[str] = []
    others: list[str] = []
    for name in sorted(members.files, key=lambda name: PurePosixPath(name).parts):
        suffix = PurePosixPath(name).suffix.lower()
        is_image = suffix in SUFFIXES or (
            suffix not in DOCUMENTS and looks_like_picture(members.read(name))
        )
        (images if is_image else others).append(name)
    return images, others


def _n_around(paths: Sequence[Parts]) -> int:
    """Return how many folders lie around everything: class folders are below them."""
    n = 0
    while (
        paths
        and min(len(path) for path in paths) - n > 2
        and len({path[n] for path in paths}) == 1
        and paths[0][n].lower() not in SPLITS
    ):
        n += 1
    return n


def _check_folders(
    paths: Sequence[Parts], n_around: int, n_above: int, members: Members
) -> None:
    """Raise unless every image lies in a class folder, and all in the same way."""
    tops = sorted({path[n_around] for path in paths if len(path) > n_around + 1})
    splits = [SPLITS.get(top.lower()) for top in tops]
    between = {path[:n_above]: path[n_above + 1 : -1] for path in paths}
    good = (
        paths
        and all(len(path) > n_above + 1 for path in paths)
        and all(path[n_above + 1 : -1] == between[path[:n_above]] for path in paths)
        and (
            len(set(splits)) == len(splits) and None not in splits
            if n_above > n_around
            else None in splits
        )
    )
    if not good:
        got = sorted({"/".join(path[n_around:-1]) or "." for path in paths})
        raise ValueError(
            "`source` must hold images as train/<class>/*, test/<class>/* and, if you "
            "like, val/<class>/*, or as <class>/*; got "
            f"{'images in ' + _some(got) if got else 'no image'} at {members.where}. "
            "Arrange the folders so."
        )


def _refuse_empty(
    members: Members,
    inside: set[Parts],
    n_around: int,
    in_splits: bool,
    notes: Notes,
) -> None:
    """Raise if a folder that should hold images has none: a class would vanish."""
    depth = n_around + in_splits + 1
    full = {path[:n] for path in inside for n in range(1, depth + 1)}
    for name in sorted(members.folders):
        path = tuple(name.split("/"))
        parent_is_full = len(path) == 1 or path[:-1] in full
        if len(path) > depth or path in full or not parent_is_full:
            continue
        beside_splits = in_splits and len(path) == n_around + 1
        if beside_splits and path[-1].lower() not in SPLITS:
            notes.add("folders without an image, left out", name)
            continue
        raise ValueError(
            "`source` must hold images in each of its folders; got none that can be "
            f"read in {name} at {members.where}. Remove the folder, or put its images "
            "there as PNG or JPEG."
        )


def _leave_out(
    others: Sequence[str], inside: set[Parts], members: Members, notes: Notes
) -> None:
    """Note the files that are no images; raise over one that should be."""
    for name in others:
        path = PurePosixPath(name)
        folders = {path.parts[:n] for n in range(1, len(path.parts))}
        beside = path.suffix.lower() in DOCUMENTS or path.name.lower() in TEXTS
        if folders & inside and not beside:
            raise ValueError(
                "`images` must be files that can be read (PNG, JPEG, BMP, GIF, TIFF, "
                f"WebP, PPM); got another at {members.where}: {name}. Convert it, or "
                "move it out of the class folder."
            )
        notes.add("files that are no images, left out", name)


def _numbered(
    images: Sequence[str],
    placed: Sequence[tuple[str, str]],
    members: Members,
) -> Layout:
    classes = sorted({name for split, name in placed if split == "train"})
    strange = sorted({name for _, name in placed} - set(classes))
    if strange:
        raise ValueError(
            "`source` must have no class in test or val that train does not have; got "
            f"{_some(strange)} at {members.where}. Put the images of val and test into "
            "folders named like those of train, or leave them out."
        )
    label = {name: index for index, name in enumerate(classes)}
    splits: dict[str, list[Sample]] = {}
    for file, (split, name) in zip(images, placed, strict=True):
        splits.setdefault(split, []).append((file, label[name]))
    return Layout(splits, tuple(classes))


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
