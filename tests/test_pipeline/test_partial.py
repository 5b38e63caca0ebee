"""Partial files and folders: what dead writers leave goes, what living ones hold stays.

A writer is a process that is killed while it holds its partial, or that lives on.
"""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import partial as module
from pipeline.atomic import partial_directory, publish
from pipeline.pack import save
from pipeline.partial import FORGOTTEN_S, remove_leftovers
from pipeline.whole_file import whole_file, write_whole

ROOT = Path(__file__).parents[2]
WRITERS = {
    "file": "from pipeline.whole_file import whole_file as writer",
    "folder": "from pipeline.atomic import partial_directory as writer",
}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def writer():
    """Start a process that holds a partial of a path until it is killed."""
    started = []

    def start(path: Path, kind: str) -> subprocess.Popen[str]:
        code = (
            f"import sys\nfrom pathlib import Path\n{WRITERS[kind]}\n"
            f"with writer(Path({str(path)!r})):\n"
            "    print('holds', flush=True)\n    sys.stdin.read()\n"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "holds\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=20)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_partial__of_a_killed_writer_goes_with_the_next_one_that_of_a_living_stays(
    tmp_path, writer, kind
):
    killed = writer(tmp_path / "a.npz", kind)
    (dead,) = names(tmp_path)
    writer(tmp_path / "a.npz", kind)
    living = names(tmp_path) - {dead}
    write_whole(tmp_path / "b.html", "b")
    assert names(tmp_path) == {dead, *living, "b.html"}
    killed.send_signal(signal.SIGKILL)
    killed.wait(20)
    write_whole(tmp_path / "b.html", "b")
    assert names(tmp_path) == {*living, "b.html"}


@pytest.mark.parametrize(
    "write",
    [
        lambda path: save(path, 1),
        lambda path: write_whole(path, "new"),
        lambda path: partial_directory(path).__enter__() and None,
    ],
)
def test_partial__every_writer_removes_what_dead_ones_left(tmp_path, writer, write):
    dead = writer(tmp_path / "x.checkpoint.npz", "file")
    dead.kill()
    dead.wait(20)
    (left,) = names(tmp_path)
    write(tmp_path / "y")
    assert left not in names(tmp_path)


def test_partial__a_lock_counts_whatever_process_number_its_writer_has(tmp_path):
    # In containers that share a host name another's process number says nothing.
    with partial_directory(tmp_path / "a.zarr") as made:
        (made / "c").write_text("c", encoding="utf-8")
        code = (
            "from pathlib import Path\nfrom pipeline.partial import remove_leftovers\n"
            f"remove_leftovers(Path({str(tmp_path)!r}))"
        )
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)
        assert (made / "c").is_file()
    assert names(tmp_path) == set()


@pytest.mark.parametrize(
    ("name", "is_folder"),
    [
        (".a.zarr.01234567-0123456789abcdef.partial", True),  # another machine's
        (".a.zarr.other-host-12-0123abcd.partial", True),  # of earlier releases
        (".a.checkpoint.npz.4711.partial", False),
    ],
)
def test_partial__of_another_machine_goes_when_it_is_forgotten(
    tmp_path, name, is_folder
):
    left = tmp_path / name
    left.mkdir() if is_folder else left.write_bytes(b"half")
    write_whole(tmp_path / "b", "b")
    assert left.exists()
    old = time.time() - FORGOTTEN_S - 1
    os.utime(left, (old, old))
    write_whole(tmp_path / "b", "b")
    assert not left.exists()


def test_partial__without_locks_only_time_tells(tmp_path, monkeypatch):
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with partial_directory(tmp_path / "a.zarr") as made:
        (made / "c").write_text("c", encoding="utf-8")
        remove_leftovers(tmp_path)
        assert (made / "c").is_file()
        old = time.time() - FORGOTTEN_S - 1
        for path in (made / "c", made):
            os.utime(path, (old, old))
        remove_leftovers(tmp_path)
        assert not made.exists()


@pytest.mark.parametrize(
    "name",
    [
        ".a.zarr.partial",
        "a.zarr.01234567-0123456789abcdef.partial",
        ".data.12.partial",
        ".report.html.original",
        ".a.zarr.01234567-0123456789abcdef.partial.txt",
    ],
)
def test_partial__nothing_with_another_name_is_touched(tmp_path, name):
    other = tmp_path / name
    other.write_text("mine", encoding="utf-8")
    os.utime(other, (1, 1))
    write_whole(tmp_path / "b", "b")
    assert other.read_text(encoding="utf-8") == "mine"


def test_partial__a_link_in_its_place_is_not_followed(tmp_path):
    (tmp_path / "precious").mkdir()
    link = tmp_path / f".a.{module._machine()}-0123456789abcdef.partial"
    link.symlink_to(tmp_path / "precious")
    write_whole(tmp_path / "b", "b")
    assert (tmp_path / "precious").is_dir()


def test_partial__whoever_tidies_up_first_makes_the_writer_start_anew(
    tmp_path, monkeypatch
):
    lock, seen = module._lock, []

    def late(descriptor: int) -> str:
        if not seen:  # between the making of a partial and its lock
            (made,) = tmp_path.iterdir()
            seen.append(made)
            made.unlink()
        return lock(descriptor)

    monkeypatch.setattr(module, "_lock", late)
    write_whole(tmp_path / "a", "a")
    assert names(tmp_path) == {"a"}
    assert seen


def test_publish__a_folder_moved_aside_by_a_dead_process_comes_back(tmp_path):
    aside = tmp_path / f".a.zarr.{module._machine()}-0123456789abcdef.old"
    aside.mkdir()
    write_whole(tmp_path / "b", "b")
    assert names(tmp_path) == {"a.zarr", "b"}


def test_publish__without_an_exchange_what_moves_aside_is_held(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.atomic._exchange", lambda *_: False)
    (tmp_path / "a" / "old").mkdir(parents=True)
    rename = Path.rename

    def looked_at(self: Path, target: Path) -> Path:
        done = rename(self, target)
        remove_leftovers(tmp_path)  # another writer, between any two moves
        return done

    monkeypatch.setattr(Path, "rename", looked_at)
    with partial_directory(tmp_path / "a") as made:
        (made / "new").mkdir()
        publish(made, tmp_path / "a")
    assert names(tmp_path) == {"a"}
    assert names(tmp_path / "a") == {"new"}


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_writers__leave_permissions_to_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        write_whole(tmp_path / "a", "a")
        with partial_directory(tmp_path / "b") as made:
            publish(made, tmp_path / "b")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "b").stat().st_mode) == 0o777 & ~mask


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT])
def test_writers__a_full_disk_names_the_file(tmp_path, reason):
    path = tmp_path / "report.html"
    full = OSError(reason, os.strerror(reason))
    for writer in (whole_file, partial_directory):
        with (
            pytest.raises(RuntimeError, match=f"`{path}` must have room on its disk"),
            writer(path),
        ):
            raise full
    assert names(tmp_path) == set()


def test_write_whole__every_error_names_the_file_and_not_its_partial(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").mkdir()
    with pytest.raises(OSError, match="Is a directory") as caught:
        write_whole(tmp_path / "a", "text")
    assert caught.value.filename == str(tmp_path / "a")
    with (
        pytest.raises(OSError, match="Input/output error") as caught,
        whole_file(tmp_path / "c"),
    ):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    assert caught.value.filename == str(tmp_path / "c")


def test_writers__are_on_the_disk_with_their_folders_before_they_say_so(
    tmp_path, monkeypatch
):
    synced: list[str] = []
    fsync = os.fsync

    def seen(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to see what is synchronised")
    monkeypatch.setattr(os, "fsync", seen)
    write_whole(tmp_path / "new" / "folder" / "a", "a")
    assert synced[:2] == [str(tmp_path), str(tmp_path / "new")]
    assert Path(synced[2]).name.startswith(".a.")
    assert synced[3:] == [str(tmp_path / "new" / "folder")]
