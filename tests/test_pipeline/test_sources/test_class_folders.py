"""Splits and classes are told from folders; none vanishes, none is renumbered."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.sources.layout import arrange
from pipeline.sources.members import open_members
from pipeline.sources.notes import Notes
from pipeline.store import ingest, open_store


@pytest.fixture
def layout(tmp_path, as_folder, png):
    """Return the function that arranges files of these names, and what it notes."""
    picture = png(np.zeros((2, 2), np.uint8))

    def arranged(names, *, folders=(), others=()):
        files = dict.fromkeys(names, picture) | dict.fromkeys(others, b"hello")
        source = as_folder(tmp_path / "f", files)
        source.mkdir(exist_ok=True)
        for folder in folders:
            (source / folder).mkdir(parents=True)
        notes = Notes()
        with open_members(source, notes) as members:
            return arrange(members, notes), notes.sentences()

    return arranged


def counts(found):
    return {
        split: np.bincount([label for _, label in samples]).tolist()
        for split, samples in found.splits.items()
    }


@pytest.mark.parametrize(
    "names",
    [
        ["{}/a/0.png", "{}/b/0.png"],
        ["{}/a/images/0.png", "{}/b/images/0.png"],
        ["set/{}/a/0.png", "set/{}/b/0.png"],
        ["set/v1/{}/a/x/y/0.png", "set/v1/{}/b/x/y/0.png"],
    ],
)
@pytest.mark.parametrize(
    "splits", [("train", "val", "test"), ("Training", "valid", "Testing")]
)
def test_layout__splits_lie_above_the_classes(layout, names, splits):
    found, notes = layout([name.format(s) for name in names for s in splits])
    assert found.classes == ("a", "b")
    assert counts(found) == {"train": [1, 1], "val": [1, 1], "test": [1, 1]}
    assert not notes


@pytest.mark.parametrize("around", ["", "set/", "a set/of/mine/"])
@pytest.mark.parametrize("between", ["", "images/", "x/y/"])
def test_layout__classes_may_be_wrapped_and_filled_in_any_one_way(
    layout, around, between
):
    found, _ = layout([f"{around}{name}/{between}0.png" for name in ("cat", "dog")])
    assert found.classes == ("cat", "dog")


def test_layout__a_class_may_be_called_train_if_another_is_not(layout):
    assert layout(["bus/0.png", "train/0.png"])[0].classes == ("bus", "train")


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["0.png"],
        ["train/0.png", "test/0.png"],  # classes called train and test
        ["train/a/0.png", "extra/a/0.png"],
        ["val/a/0.png", "test/a/0.png"],
        ["train/a/0.png", "val/a/0.png", "valid/a/0.png"],
        ["train/a/0.png", "train/0.png"],
        ["a/0.png", "a/b/0.png"],
        ["animals/cat/0.png", "plants/rose/0.png"],
    ],
)
def test_layout__others_are_refused(layout, names):
    with pytest.raises(ValueError, match=r"must hold images as train/<class>"):
        layout(names)


@pytest.mark.parametrize(
    ("names", "folder"),
    [
        (["a/0.png", "c/0.png"], "b"),
        (["set/a/0.png", "set/c/0.png"], "set/b"),
        (["train/a/0.png", "train/b/0.png", "test/a/0.png"], "test/b"),
        (["train/a/0.png", "train/b/0.png"], "test"),
        (["cat/images/0.png"], "dog"),  # cat would be taken for a folder around all
    ],
)
def test_layout__a_folder_without_an_image_is_refused(layout, names, folder):
    with pytest.raises(
        ValueError, match=f"in each of its folders; got none .*{folder}"
    ):
        layout(names, folders=[folder])


def test_layout__a_class_of_unknown_files_only_is_refused(layout):
    with pytest.raises(ValueError, match=r"in each of its folders; got none .* in b "):
        layout(["a/0.png"], others=["b/0.heic"])


@pytest.mark.parametrize("name", ["x.jfif", "x", "x.JPEG", "x.picture"])
def test_layout__images_are_known_by_their_content(layout, name):
    found, notes = layout(["a/0.png", f"b/{name}"])
    assert found.classes == ("a", "b")
    assert counts(found) == {"train": [1, 1]}
    assert not notes


@pytest.mark.parametrize("name", ["1.heic", "1", "1.mp4"])
def test_layout__a_file_of_a_class_that_is_no_image_is_refused(layout, name):
    with pytest.raises(ValueError, match=rf"files that can be read.*a/{name}\. Conv"):
        layout(["a/0.png"], others=[f"a/{name}"])


def test_layout__texts_that_come_with_data_are_left_out_and_said(layout):
    found, notes = layout(["a/0.png", "b/0.png"], others=["a/README", "LICENSE"])
    assert counts(found) == {"train": [1, 1]}
    assert notes == ["Files that are no images, left out: 2, such as LICENSE."]


def test_ingest__the_folder_in_which_one_stands_has_its_name(
    tmp_path, as_folder, png, monkeypatch
):
    image = png(np.zeros((2, 2), np.uint8))
    files = {f"{c}/{i}.png": image for c in "ab" for i in range(6)}
    source = as_folder(tmp_path / "pets", files)
    ingest("image-folder", source=source, store=tmp_path / "p.zarr")
    monkeypatch.chdir(source)
    again = ingest("image-folder", source=".", store=tmp_path / "p.zarr")
    assert again.status == "identical"


def test_layout__documents_and_hidden_files_are_left_out_and_said(layout):
    found, notes = layout(
        ["a/0.png", "b/0.png"],
        others=["README", "a/labels.txt", ".hidden/0.png", "a/.0.png", "a/Thumbs.db"],
    )
    assert counts(found) == {"train": [1, 1]}
    assert notes == ["Files that are no images, left out: 2, such as README."]


def test_layout__a_folder_beside_the_splits_is_left_out_and_said(layout):
    _, notes = layout(["train/a/0.png"], folders=["annotations"])
    assert notes == ["Folders without an image, left out: 1, such as annotations."]


def test_layout__labels_are_those_of_train_in_every_split(layout):
    found, _ = layout(["train/a/0.png", "train/b/0.png", "test/b/0.png"])
    assert found.splits["test"] == [("test/b/0.png", 1)]
    with pytest.raises(ValueError, match=r"no class in test or val .* got c"):
        layout(["test/c/0.png"])


def test_ingest__a_val_folder_is_val(tmp_path, as_folder, png, rng):
    images = rng.integers(0, 256, (40, 3, 3), dtype=np.uint8)
    files = {}
    for i, image in enumerate(images):
        split = "val" if i < 6 else "test" if i < 10 else "train"
        files[f"{split}/{'ab'[i % 2]}/{i:02}.png"] = png(image)
    source = as_folder(tmp_path / "f", files)

    def sums(store, split):
        return sorted(store.images(split).reshape(-1, 9).sum(1).tolist())

    def expected(rows):
        return sorted(images[rows].reshape(-1, 9).sum(1, dtype=int).tolist())

    whole = open_store(ingest("image-folder", source=source, store=tmp_path / "a").path)
    assert sums(whole, "val") == expected(slice(0, 6))
    assert sums(whole, "test") == expected(slice(6, 10))
    assert sums(whole, "train") == expected(slice(10, 40))
    pixels = whole.images("train") / 255
    assert whole.mean == pytest.approx([pixels.mean()], rel=1e-12)
    info = ingest("image-folder", source=source, store=tmp_path / "b", limit_train=8)
    assert (info.n_train, info.n_val, info.n_test) == (8, 6, 4)


def test_ingest__val_without_test_leaves_one_in_six_of_train_for_testing(
    read, tmp_path, as_folder, pets
):
    files = {f"train/{k}": v for k, v in pets.items()}
    files |= {f"val/{k}": v for k, v in pets.items() if "0.png" in k}
    data = read("image-folder", as_folder(tmp_path / "f", files))[4]
    assert (data.train.n_samples, data.test.n_samples) == (12, 2)
    assert data.val.n_samples == 2
