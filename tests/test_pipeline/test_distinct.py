"""Runs count once, and data of one name that differ are kept apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from pipeline.compare import combine_runs, summary_table
from pipeline.comparisons import level_at
from pipeline.exports import evaluation_table
from pipeline.pairing import pair_runs
from pipeline.report import report_html
from pipeline.series import group_runs
from pipeline.verdict_sides import sides_of

A, B = "a1" * 32, "b2" * 32


@pytest.fixture
def store(tmp_path, synthetic_run, write_run):
    """Return the function that writes a run of some data: ``store(seed, data=A)``."""

    def write(
        seed: int, data: str = A, name: str = "pets", mode="sync", **attrs
    ) -> Path:
        folder = tmp_path / f"{len(list(tmp_path.iterdir()))}"
        params = f"{seed:064d}"
        known = {"dataset": name, "data_sha256": data, "params_sha256": params}
        known |= {"run_id": f"nd-cao-{mode}-{name}-s{seed}-{data[:6]}"}
        return write_run(
            synthetic_run(mode=mode, seed=seed, attrs=known | attrs), folder
        )

    return write


def copies(path: Path, n: int) -> list[Path]:
    return [
        Path(shutil.copytree(path, path.with_name(f"copy-{i}.zarr"))) for i in range(n)
    ]


def test_combine__a_run_and_its_copies_count_once_and_are_named(store) -> None:
    first, second = store(0), store(1)
    ds = combine_runs([first, *copies(second, 3), second])
    assert ds["seed"].values.tolist() == [0, 1]
    found = level_at(ds, range(2))
    assert (found.n, found.claims) == (2, False)
    (text,) = ds.attrs["kept_apart"]
    assert text.startswith("nd-cao-sync-pets-s1-a1a1a1 is counted once, although it is")
    assert "in 4 stores" in text
    assert "copy-2.zarr" in text
    assert text in report_html(ds)


def test_combine__a_run_that_was_trained_again_counts_twice_and_is_named(store) -> None:
    runs = [store(0, params_sha256=p * 64) for p in "01"]
    ds = combine_runs(runs)
    assert ds.sizes["run"] == 2
    (text,) = ds.attrs["kept_apart"]
    assert "(2 runs) share seed and settings and ended differently" in text


def test_combine__runs_that_differ_are_not_remarked(store) -> None:
    ds = combine_runs([store(0), store(1), store(0, mode="async")])
    assert ds.attrs["kept_apart"] == []
    assert set(ds["dataset"].values) == {"pets"}


def test_groups__different_data_of_one_name_are_never_averaged(store) -> None:
    ds = combine_runs([store(0), store(1), store(2), store(0, B), store(1, B)])
    groups = group_runs(ds)
    assert [group.runs for group in groups] == [(0, 1, 2), (3, 4)]
    assert [group.label for group in groups] == [
        "nd-cao sync · pets (a1a1a1a1)",
        "nd-cao sync · pets (b2b2b2b2)",
    ]
    assert ds.attrs["kept_apart"] == [
        "pets is the name of 2 different data sets, which are kept apart: "
        "pets (a1a1a1a1) of 3 runs, pets (b2b2b2b2) of 2 runs."
    ]
    assert ds.sel(dataset="pets (b2b2b2b2)").sizes["run"] == 2
    assert set(summary_table(ds)["dataset"]) == {*ds["dataset"].values}
    assert set(evaluation_table(ds)["dataset"]) == {*ds["dataset"].values}


def test_pairs__are_of_the_same_content_and_verdicts_too(store) -> None:
    runs = [
        store(s, data, mode=mode)
        for mode in ("sync", "async")
        for data in (A, B)
        for s in (0, 1, 2)
    ]
    ds = combine_runs(runs)
    pairs = pair_runs(ds, {"mode": "async"}, {"mode": "sync"})
    hashes = ds["data_sha256"].values
    np.testing.assert_array_equal(hashes[[*pairs.first]], hashes[[*pairs.second]])
    assert len(set(pairs.strata)) == 2
    assert len(list(sides_of(ds, group_runs(ds)))) == 2
    mixed = combine_runs([*runs[:3], *runs[9:]])  # sync on one, async on the other
    assert not list(sides_of(mixed, group_runs(mixed)))


def test_combine__the_same_data_under_two_names_are_one_and_said(store) -> None:
    ds = combine_runs([store(0), store(1, name="cats"), store(2)])
    assert ds["dataset"].values.tolist() == ["pets"] * 3
    assert ds.attrs["kept_apart"] == ["pets and cats are the same data, shown as pets."]
    assert len(group_runs(ds)) == 1


def test_combine__hashes_that_begin_alike_are_still_told_apart(store) -> None:
    other = A[:8] + B[8:]
    ds = combine_runs([store(0), store(1, other)])
    assert ds["dataset"].values.tolist() == [f"pets ({A})", f"pets ({other})"]


def test_combine__runs_that_hold_no_hash_go_by_their_name(store) -> None:
    ds = combine_runs([store(0, ""), store(1, "", name="cats"), store(2, A)])
    assert ds["dataset"].values.tolist() == [
        "pets (no hash)",
        "cats",
        "pets (a1a1a1a1)",
    ]


def test_groups__runs_of_the_same_names_and_other_code_are_never_averaged(
    store,
) -> None:
    code = [json.dumps({"digest": c * 64}) for c in "cd"]
    runs = [store(s, user_code=code[0]) for s in (0, 1)] + [store(2, user_code=code[1])]
    ds = combine_runs(runs)
    assert [group.label for group in group_runs(ds)] == [
        "nd-cao sync · user_code=cccccccc",
        "nd-cao sync · user_code=dddddddd",
    ]
    assert "config.user_code" not in combine_runs(runs[:2])
