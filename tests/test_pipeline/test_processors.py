"""A run records every kind of processor that computed for it, and says if several."""

from __future__ import annotations

import json
import threading

import pytest

from pipeline.processors import kinds, processor, several
from pipeline.replay import replay
from pipeline.run_store import open_run
from pipeline.runs import summary
from pipeline.train import resume, train

OTHER = processor() | {"processor": "Another 9000", "code_paths": {"MKL_CBWR": "AVX2"}}


def computed_on(ds) -> list[dict]:
    return json.loads(open_run(ds.attrs["store"]).attrs["hardware"])["processors"]


@pytest.fixture
def elsewhere(monkeypatch):
    """Return what makes this process, not its workers, one on another processor."""
    return lambda: monkeypatch.setattr("pipeline.harness.processor", lambda: OTHER)


def test_kinds__are_distinct_and_hold_gpus_only_where_they_are_used() -> None:
    here = processor()
    with_gpu = here | {"gpus": ["A"]}
    assert kinds([here, with_gpu, OTHER, here], "cpu") == kinds([here, OTHER], "cpu")
    assert kinds([here, with_gpu, here], "cuda") == [here, with_gpu]


def test_processor__tells_the_code_paths_that_were_chosen(monkeypatch) -> None:
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "")
    assert processor()["code_paths"] == {"MKL_CBWR": "COMPATIBLE"}


def test_several__is_a_sentence_with_every_kind_in_it() -> None:
    assert several("one", [OTHER]) == []
    (text,) = several("r", [OTHER, processor()])
    assert text.startswith("`run` r was computed on 2 kinds of processor (Another 9000")
    assert "MKL_CBWR=AVX2" in text
    assert "its bits are nobody's" in text


def test_run__records_the_processor_it_was_computed_on(sync_run) -> None:
    ds, _ = sync_run
    assert computed_on(ds) == kinds([processor()], "cpu")
    assert summary(ds)["warnings"] == []


def test_resume__on_another_processor_records_both_and_says_so(
    tiny, tmp_path, caplog, elsewhere
) -> None:
    stop = threading.Event()
    stop.set()
    begun = train(tiny(budget={"steps": 4}), results=tmp_path, stop=stop)
    elsewhere()
    ds = resume(begun.attrs["store"])
    assert ds.attrs["run_id"] == begun.attrs["run_id"]
    assert computed_on(ds) == kinds([processor(), OTHER], "cpu")
    (text,) = summary(ds)["warnings"]
    assert caplog.messages.count(text) == 1
    line = replay(ds.attrs["store"])
    assert line["warnings"] == [text]
    assert line["matches"]
    assert not line["same_platform"]


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "flags",
    [
        {"mode": "sync"},
        {"mode": "async"},
        {"mode": "async", "algorithm": "async-sgd", "blocks": None, "nodes": 2},
    ],
    ids=["pieces", "futures", "jobs"],
)
def test_train__records_workers_on_another_processor(
    flags, tiny, shared, tmp_path, caplog, elsewhere
) -> None:
    elsewhere()
    ds = train(tiny(cluster=shared, **flags), results=tmp_path)
    assert computed_on(ds) == kinds([OTHER, processor()], "cpu")
    (text,) = summary(ds)["warnings"]
    assert text in caplog.messages
