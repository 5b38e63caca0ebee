"""What a worker tells of its updates while it runs, and what futures are called."""

from __future__ import annotations

import time

import pytest
from dask.utils import key_split

from pipeline.cluster import open_cluster
from pipeline.config import ClusterConfig
from pipeline.timeline import MOST, TOPIC, Timeline
from pipeline.train import train


def test_timeline__one_event_a_run_however_many_updates() -> None:
    timeline = Timeline()
    assert timeline.add("a", (0, 0, 1.0, 2.0))
    assert not timeline.add("b", (3, 0, 1.0, 2.0))
    for step in range(1, 1000):
        assert not timeline.add("a", (0, step, 1.0, 2.0))
    first, second = timeline.take()
    assert (first["run"], first["n_updates"]) == ("a", 1000)
    assert [step for _, step, *_ in first["updates"]] == list(range(1000 - MOST, 1000))
    assert second == {"run": "b", "n_updates": 1, "updates": [(3, 0, 1.0, 2.0)]}
    assert timeline.take() == []
    assert timeline.add("a", (0, 0, 1.0, 2.0))


@pytest.mark.cluster
@pytest.mark.parametrize("mode", ["sync", "async"])
def test_events__tell_blocks_apart_and_keys_name_run_blocks_and_round(
    mode, tiny, tmp_path
) -> None:
    with open_cluster(ClusterConfig(workers=2)) as cluster:
        cluster.client.run_on_scheduler(watch_keys)
        addresses = set(cluster.workers())
        where = {"kind": "address", "address": cluster.address}
        config = tiny(mode=mode, budget={"steps": 20}, cluster=where)
        ds = train(config, results=tmp_path)
        run_id, n_nodes = ds.attrs["run_id"], int(ds.update_node.max()) + 1
        events = []
        deadline = time.monotonic() + 20
        while sum(event["n_updates"] for event in events) < ds.sizes["update"]:
            assert time.monotonic() < deadline, events
            found = cluster.client.get_events(TOPIC)
            events = [event for _, event in found if event["run"] == run_id]
        listed = {(block, step) for e in events for block, step, *_ in e["updates"]}
        assert {block for block, _ in listed} == set(range(n_nodes))
        assert {event["worker"] for event in events} <= addresses
        assert all(a <= b for e in events for *_, a, b in e["updates"])
        keys = cluster.client.run_on_scheduler(seen_keys)
    groups = {key_split(key) for key in keys if run_id in key}
    own = {"publish", "score"} if mode == "async" else set()
    assert groups == {"prepare", "update", "evaluate"} | own
    updates = [key for key in keys if key.startswith("update-")]
    first = "s0" if mode == "async" else "r0"
    assert any(key.split("-")[1:3] == ["b0+b1", first] for key in updates), updates


def watch_keys(dask_scheduler) -> None:
    """Keep the keys of all tasks."""
    from distributed import SchedulerPlugin

    class Keys(SchedulerPlugin):
        name = "keys"

        def __init__(self) -> None:
            self.keys: set[str] = set()

        def transition(self, key, *args, **kwargs) -> None:
            self.keys.add(str(key))

    dask_scheduler.add_plugin(Keys())


def seen_keys(dask_scheduler) -> list[str]:
    """The keys that were seen."""
    return sorted(dask_scheduler.plugins["keys"].keys)
