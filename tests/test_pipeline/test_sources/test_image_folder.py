"""Class folders of images: what is read, and what is refused."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from pipeline.sources import raw


@pytest.fixture
def pictures(rng, png):
    """Return path → PNG of train/test folders of two classes, 12 and 6 and 2 each."""
    found = {}
    for split, counts in (("train", (12, 6)), ("test", (2, 2))):
        for name, n in zip(("cat", "dog"), counts, strict=True):
            for i in range(n):
                pixels = rng.integers(0, 256, (6, 5, 3), dtype=np.uint8)
                found[f"{split}/{name}/{i:03d}.png"] = png(pixels)
    return found


def test_image_folder__a_zip_reads_as_the_folder_it_holds(
    read, tmp_path, pictures, as_folder, as_zip
):
    folder = read("image-folder", as_folder(tmp_path / "f", pictures))
    packed = read("image-folder", as_zip(tmp_path / "f.zip", pictures))
    wrapped = read(
        "image-folder",
        as_zip(tmp_path / "w.zip", {f"pets/{k}": v for k, v in pictures.items()}),
    )
    for a, b, c in zip(folder[:4], packed[:4], wrapped[:4], strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
    assert folder[4].class_names == ("cat", "dog")
    assert folder[0].shape == (18, 3, 6, 5)
    first = np.asarray(Image.open(io.BytesIO(pictures["train/cat/000.png"])))
    np.testing.assert_array_equal(folder[0][0], first.transpose(2, 0, 1))


def test_image_folder__every_stretch_has_the_classes_shares(
    read, tmp_path, pictures, as_folder
):
    _, y, _, _, _ = read("image-folder", as_folder(tmp_path / "f", pictures))
    for start in range(0, 18, 3):
        assert sorted(y[start : start + 3]) == [0, 0, 1]


def test_image_folder__without_test_one_in_six_of_each_class_is_held_out(
    read, tmp_path, pictures, as_folder
):
    files = {k.removeprefix("train/"): v for k, v in pictures.items() if "train" in k}
    _, y, _, test_y, _ = read("image-folder", as_folder(tmp_path / "f", files))
    assert np.bincount(y).tolist() == [10, 5]
    assert np.bincount(test_y).tolist() == [2, 1]


def test_image_folder__grey_images_have_one_channel(
    read, tmp_path, rng, png, as_folder
):
    pixels = rng.integers(0, 256, (6, 4, 4), dtype=np.uint8)
    files = {f"a/{i}.png": png(p) for i, p in enumerate(pixels)}
    x, _, test_x, _, _ = read("image-folder", as_folder(tmp_path / "f", files))
    np.testing.assert_array_equal(x[:, 0], pixels[:5])
    np.testing.assert_array_equal(test_x[:, 0], pixels[5:])


def test_image_folder__refuses_an_image_of_another_size(
    read, tmp_path, pictures, rng, png, as_folder
):
    pictures["train/dog/003.png"] = png(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"5 × 6 pixels.*got 6 × 6 .*dog/003.png"):
        read("image-folder", as_folder(tmp_path / "f", pictures))


def test_image_folder__refuses_a_damaged_image(read, tmp_path, pictures, as_zip):
    pictures["train/dog/003.png"] = pictures["train/dog/003.png"][:60]
    with pytest.raises(ValueError, match=r"whole image files.*dog/003.png"):
        read("image-folder", as_zip(tmp_path / "f.zip", pictures))


@pytest.mark.parametrize(
    "name", ["/etc/x.png", "../x.png", "train/../../x.png", "C:\\x.png", "a\\..\\x.png"]
)
def test_image_folder__refuses_unsafe_member_names(
    read, tmp_path, pictures, name, as_zip
):
    path = as_zip(tmp_path / "f.zip", {name: b"x", **pictures})
    with pytest.raises(ValueError, match="relative member names"):
        read("image-folder", path)


def test_image_folder__refuses_a_zip_bomb(
    read, tmp_path, pictures, monkeypatch, as_zip
):
    pictures["train/cat/bomb.png"] = bytes(10_000_000)
    path = as_zip(tmp_path / "f.zip", pictures)
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(raw, "MAX_UNPACKED_BYTES", 1_000_000)
    with pytest.raises(ValueError, match="at most 1000000 bytes"):
        read("image-folder", path)


def test_image_folder__refuses_an_image_that_decodes_to_too_much(
    read, tmp_path, pictures, as_zip
):
    file = io.BytesIO()
    Image.new("RGB", (5000, 5000)).save(file, "png")
    pictures = {f"train/cat/{i}.png": file.getvalue() for i in range(7)}
    with pytest.raises(ValueError, match="at most 33554432 bytes"):
        read("image-folder", as_zip(tmp_path / "f.zip", pictures))


@pytest.mark.parametrize(
    "names",
    [
        ["0.png"],
        ["train/a/0.png", "valid/a/0.png"],
        ["a/0.png", "a/b/0.png"],
        ["readme.txt"],
        ["train/a/0.png", "test/b/0.png"],
    ],
)
def test_image_folder__refuses_other_layouts(
    read, tmp_path, pictures, names, as_folder
):
    image = pictures["train/cat/000.png"]
    with pytest.raises(ValueError, match="`source` must"):
        read("image-folder", as_folder(tmp_path / "f", dict.fromkeys(names, image)))


def test_image_folder__refuses_what_is_no_zip(read, tmp_path):
    (tmp_path / "f.zip").write_bytes(b"hello")
    with pytest.raises(ValueError, match="whole zip"):
        read("image-folder", tmp_path / "f.zip")


@pytest.mark.parametrize("name", ["mnist", "cifar10", "image-folder", "npz"])
def test_source__missing_is_a_clear_error(read, tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*--from"):
        read(name, tmp_path / "nowhere")


def test_source__unknown_name_lists_the_known_ones(read, tmp_path):
    with pytest.raises(ValueError, match=r"digits, mnist.*got 'mnits'"):
        read("mnits", tmp_path)
