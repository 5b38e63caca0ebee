"""Every process of a run computes on the data that the run was told, or on none."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import batches
from pipeline.cluster_config import ClusterConfig
from pipeline.context import RunSpec, context_of
from pipeline.data_store import open_store
from pipeline.resolve import resolve
from pipeline.store import ingest
from pipeline.train import resume, train


@pytest.fixture
def own(digits, tmp_path) -> Path:
    """Return a copy of the digits, to be replaced."""
    return Path(shutil.copytree(digits, tmp_path / "data" / "digits.zarr"))


@pytest.fixture(scope="session")
def other(digits, tmp_path_factory) -> Path:
    """Return another valid store: the same digits, upside down."""
    folder, data = tmp_path_factory.mktemp("other"), open_store(digits)
    arrays = {}
    for split in ("train", "test"):
        images, labels = data.load(split)
        arrays |= {f"x_{split}": images[:, :, ::-1], f"y_{split}": labels}
    np.savez(folder / "upside-down.npz", **arrays)
    store = folder / "upside-down.zarr"
    return ingest("npz", source=folder / "upside-down.npz", store=store).path


@pytest.fixture
def no_data_in_memory(monkeypatch) -> None:
    monkeypatch.setattr(batches, "_IMAGES", OrderedDict())


def put(store: Path, place: Path) -> None:
    """Put a copy of a store in the place of another, as an ingest does: at once."""
    copy = shutil.copytree(store, place.with_name("copy"))
    place.rename(place.with_name("gone"))
    Path(copy).rename(place)
    shutil.rmtree(place.with_name("gone"))


def spec_of(config, store: Path) -> RunSpec:
    data = open_store(store)
    resolved = resolve(config, data)
    return RunSpec("run", resolved, str(store), data.content_sha256, 8)


def test_context_of__another_valid_store_at_the_path_is_refused(
    tiny, own, other
) -> None:
    spec = spec_of(tiny(dataset=str(own)), own)
    put(other, own)
    hashes = f"{open_store(other).content_sha256}.*not {spec.content_sha256}"
    with pytest.raises(ValueError, match=rf"^`dataset` must be the same .*{hashes}"):
        context_of(spec)
    shutil.rmtree(own)
    with pytest.raises(
        FileNotFoundError, match=rf"got nothing at {re.escape(str(own))}"
    ):
        context_of(spec)


def test_context_of__a_context_is_kept_for_its_own_data_only(tiny, own, other) -> None:
    spec = spec_of(tiny(dataset=str(own)), own)
    known = context_of(spec)
    put(other, own)
    assert context_of(spec) is known
    now = open_store(own).content_sha256
    assert context_of(replace(spec, content_sha256=now)) is not known


@pytest.mark.parametrize("sealed", [True, False])
def test_resident__a_store_that_was_replaced_after_it_was_opened_is_never_loaded(
    sealed, tiny, own, other, no_data_in_memory
) -> None:
    opened = replace(open_store(own, verify=False), sealed=sealed)
    put(other, own)
    with pytest.raises(ValueError, match=r"`store` must be complete and unchanged"):
        batches.resident(opened, "test", torch.device("cpu"))
    assert not batches._IMAGES


def test_resident__what_is_loaded_stays_that_of_its_hash(
    own, other, no_data_in_memory
) -> None:
    opened = open_store(own)
    cpu = torch.device("cpu")
    first = batches.resident(opened, "train", cpu)
    put(other, own)
    assert batches.resident(opened, "train", cpu) is first
    assert batches.resident(open_store(own), "train", cpu) is not first


@pytest.mark.cluster
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_workers__that_see_another_valid_store_end_the_run_with_nothing_written(
    mode, tiny, own, other, shared, tmp_path
) -> None:
    config = tiny(mode=mode, cluster=shared, dataset=str(own))

    @contextlib.contextmanager
    def lend():  # opened when the client has read its data, before workers do
        put(other, own)
        yield ClusterConfig(**shared)

    results = tmp_path / "results"
    with pytest.raises(ValueError, match=rf"at {own} in worker \S+ on ") as caught:
        train(config, results=results, store=own, lend=lend)
    assert str(caught.value).startswith("`dataset` must be the same in every process")
    assert not [*results.rglob("*.zarr"), *results.rglob("*.npz")]


@pytest.mark.cluster
def test_a_worker_that_starts_anew__on_a_replaced_store_ends_the_run_which_resumes(
    tiny, own, other, digits, shared, kill_at, tmp_path
) -> None:
    config = tiny(
        dataset=str(own),
        cluster=shared,
        budget={"steps": 120},
        eval_every=20,
        delays={0: 0.03},
        checkpoint_every_s=0.01,
    )
    whole = train(
        tiny(budget={"steps": 120}, eval_every=20), results=tmp_path / "whole"
    )
    replaced = []

    def replace_and_kill(progress) -> None:
        if progress.phase == "training" and progress.round > 20 and not replaced:
            replaced.append(progress.round)
            put(other, own)
            kill_at(1, every=True)

    results = tmp_path / "results"
    with pytest.raises(ValueError, match=r"the same in every process of a run"):
        train(config, results=results, store=own, progress=replace_and_kill)
    assert not list(results.rglob("*.zarr"))
    (checkpoint,) = results.rglob("*.checkpoint.npz")
    with pytest.raises(ValueError, match="content"):
        resume(checkpoint)
    put(digits, own)
    ds = resume(checkpoint)
    assert ds.attrs["status"] == "complete"
    assert ds.attrs["params_sha256"] == whole.attrs["params_sha256"]
