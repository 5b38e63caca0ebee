"""Downloads of known sets, from a server on this machine."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import threading

import pytest

from pipeline import download as module
from pipeline.download import download
from pipeline.sources.known import DIGITS, KNOWN, KnownFile, KnownSet


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder without writing to stderr."""

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Serve a folder; return it and its address."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield folder, f"http://127.0.0.1:{served.server_port}"
        served.shutdown()
        thread.join()


@pytest.fixture
def known(server, monkeypatch):
    """Let two small files on the server be the data set ``mnist``."""
    folder, url = server
    files = []
    for name in ("first", "second"):
        content = name.encode() * 1000
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        digest = hashlib.sha256(content).hexdigest()
        urls = (f"{url}/missing/{name}.gz", f"{url}/{name}.gz")
        files.append(KnownFile(name, urls, digest))
    monkeypatch.setitem(KNOWN, "mnist", KnownSet(tuple(files), DIGITS))
    return folder


def test_download__goes_on_to_the_next_address_and_keeps_the_files(known, tmp_path):
    seen = []
    target = download("mnist", tmp_path / "raw", lambda *event: seen.append(event))
    assert target == tmp_path / "raw" / "mnist"
    assert sorted(p.name for p in target.iterdir()) == ["first.gz", "second.gz"]
    stage, done, total = seen[-1]
    assert stage == "download second.gz"
    assert done == total == (known / "second.gz").stat().st_size
    for path in known.iterdir():
        path.unlink()
    assert download("mnist", tmp_path / "raw") == target  # needs no server now


def test_download__a_kept_file_that_changed_is_fetched_again(known, tmp_path):
    target = download("mnist", tmp_path)
    (target / "first.gz").write_bytes(b"cut")
    download("mnist", tmp_path)
    assert (target / "first.gz").read_bytes() == (known / "first.gz").read_bytes()


@pytest.mark.parametrize(
    "content", [gzip.compress(b"other"), b"<html>log in</html>", b""]
)
def test_download__other_content_is_refused_and_removed(known, tmp_path, content):
    (known / "second.gz").write_bytes(content)
    with pytest.raises(ValueError, match=r"published content"):
        download("mnist", tmp_path)
    assert [p.name for p in (tmp_path / "mnist").iterdir()] == ["first.gz"]


def test_download__no_network_says_what_to_do(known, tmp_path, monkeypatch):
    files = (KnownFile("first", ("http://127.0.0.1:9/first.gz",), "0" * 64),)
    monkeypatch.setitem(KNOWN, "mnist", KnownSet(files, DIGITS))
    with pytest.raises(
        ConnectionError, match=r"127.0.0.1:9.*first.gz.*ndcao ingest mnist --from PATH"
    ):
        download("mnist", tmp_path)
    assert not list((tmp_path / "mnist").iterdir())


def test_download__a_single_archive_is_the_source_itself(server, tmp_path, monkeypatch):
    folder, url = server
    (folder / "c.tar.gz").write_bytes(b"archive")
    files = (KnownFile("c.tar.gz", (f"{url}/c.tar.gz",), ""),)
    monkeypatch.setitem(KNOWN, "cifar10", KnownSet(files, DIGITS))
    with pytest.raises(ValueError, match="MD5 c32a1d4ab5d03f1284b67883e8d87530"):
        download("cifar10", tmp_path)
    digest = hashlib.md5(b"archive", usedforsecurity=False).hexdigest()
    monkeypatch.setattr(module, "CIFAR10_ARCHIVE_MD5", digest)
    assert download("cifar10", tmp_path) == tmp_path / "cifar10" / "c.tar.gz"


def test_known_sets__have_a_checksum_for_every_file():
    for name, found in KNOWN.items():
        assert len(found.class_names) == 10
        for file in found.files:
            assert len(file.sha256) == (0 if name == "cifar10" else 64)
            assert all(url.startswith("http") for url in file.urls)


def test_download__leaves_nothing_beside_the_files_whatever_happens(
    known, tmp_path, monkeypatch
):
    def broken(*_, **__):
        raise ValueError("half a file")

    monkeypatch.setattr("pooch.core.hash_matches", broken)
    with pytest.raises(ConnectionError):
        download("mnist", tmp_path / "raw")
    assert list((tmp_path / "raw" / "mnist").iterdir()) == []
