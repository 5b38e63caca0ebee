"""The known data sets: canonical addresses, class names, content checksums."""

from __future__ import annotations

from dataclasses import dataclass

DIGITS = tuple(str(digit) for digit in range(10))


@dataclass(frozen=True, slots=True)
class KnownFile:
    """One raw file: name (without ``.gz``), where it is offered, its content's hash."""

    name: str
    urls: tuple[str, ...]  # tried in order
    sha256: str  # of the uncompressed content; empty where members have hashes instead


@dataclass(frozen=True, slots=True)
class KnownSet:
    """A published data set; ``files`` in the order train images, labels, test ditto."""

    files: tuple[KnownFile, ...]
    class_names: tuple[str, ...]


def _idx_files(
    hosts: tuple[str, ...], sha256: tuple[str, ...]
) -> tuple[KnownFile, ...]:
    names = (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    )
    return tuple(
        KnownFile(name, tuple(f"{host}/{name}.gz" for host in hosts), digest)
        for name, digest in zip(names, sha256, strict=True)
    )


KNOWN: dict[str, KnownSet] = {
    # LeCun, Cortes, Burges; the author's own host no longer serves the files reliably.
    "mnist": KnownSet(
        _idx_files(
            (
                "https://ossci-datasets.s3.amazonaws.com/mnist",
                "https://storage.googleapis.com/cvdf-datasets/mnist",
            ),
            (
                "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
                "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
                "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
                "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
            ),
        ),
        DIGITS,
    ),
    # Xiao, Rasul, Vollgraf (2017), MIT licence.
    "fashion-mnist": KnownSet(
        _idx_files(
            ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",),
            (
                "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
                "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
                "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
                "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
            ),
        ),
        (
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
    ),
    # Krizhevsky, Nair, Hinton (2009).
    "cifar10": KnownSet(
        (
            KnownFile(
                "cifar-10-binary.tar.gz",
                ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",),
                "",
            ),
        ),
        (
            "airplane",
            "automobile",
            "bird",
            "cat",
            "deer",
            "dog",
            "frog",
            "horse",
            "ship",
            "truck",
        ),
    ),
}

# The MD5 beside the archive on its authors' page, for their gzip wrapping only.
CIFAR10_ARCHIVE_MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
# sha256 of the archive's members, training files first: they hold for any wrapping.
_MEMBER_SHA256 = (
    "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
)
CIFAR10_MEMBERS = dict(
    zip(
        (*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"),
        _MEMBER_SHA256,
        strict=True,
    )
)
# scikit-learn's copy of the UCI test set of handwritten digits, as its CSV text.
DIGITS_SHA256 = "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8"


def checksum_error(name: str, want: str, got: str, where: str) -> ValueError:
    """Return the error for content that is not what was published."""
    return ValueError(
        f"`{name}` must have the published content ({want}); got {got} at {where}. "
        "Fetch the file again, or pass --unverified for a re-packed or partial copy."
    )
