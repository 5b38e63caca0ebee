"""The virtual clock: the same run every time, stragglers, and barrier rounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from blocks.algorithm import LossRecord
from pipeline.asynchronous import FreeTraining, SplitsEvaluation
from pipeline.engines import InProcess
from pipeline.executor import ScoreDone, ScoreTask, UpdateTask
from pipeline.train import train
from pipeline.updates import message_of, point_of
from pipeline.virtual import Costs, VirtualExecutor


def solution(context, coordinator) -> torch.Tensor:
    messages = {n: message_of(context, p) for n, p in coordinator.points.items()}
    return context.solution(messages)[0]


@pytest.mark.parametrize(
    "algorithm",
    [{}, {"probes": 4}, {"kind": "open-es", "population_size": 6}],
    ids=["nd-cao", "nd-cao-probes", "open-es"],
)
@pytest.mark.parametrize("n_workers", [1, 2, 5])
def test_bound_zero__is_the_barrier_rounds_bit_for_bit(
    algorithm, n_workers, tiny, context_for, drive
) -> None:
    config = tiny(algorithm=algorithm, delays={0: 0.02}, blocks="by_unit:3")
    context = context_for(config.model_copy(update={"delays": {0: 0.0}}))
    engine = InProcess(context.spec)
    engine.run(0, 8)
    barrier, _ = context.solution(engine.messages())
    coordinator = drive(context, 0, steps=8, n_workers=n_workers)
    assert torch.equal(solution(context, coordinator), barrier)
    seen = {(u[1], u[2]) for u in coordinator.outcome.updates}
    assert seen == {(k, k) for k in range(8)}


def test_async__updates_are_folded_out_of_order_and_stale(async_run) -> None:
    ds, _ = async_run
    staleness = (ds.scored_version - ds.seen_version - 1).values[ds.scored_version >= 0]
    assert staleness.mean() > 0
    by_end = ds.update_step.values[np.argsort(ds.end_s.values, kind="stable")]
    assert (np.diff(by_end) < 0).any()
    assert len({tuple(s) for s in ds.score_steps.values}) == ds.sizes["score"]
    assert (np.ptp(ds.score_steps.values, axis=1) > 0).any()


def test_async__the_virtual_run_is_deterministic(async_run, tiny, tmp_path) -> None:
    ds, _ = async_run
    config = tiny(mode="async", budget={"steps": 20}, delays={1: 0.06})
    again = train(config, results=tmp_path)
    for name in ("params", "seen_version", "score_losses", "start_s", "wall_time_s"):
        np.testing.assert_array_equal(again[name].values, ds[name].values)


def test_async__a_delay_costs_virtual_time_and_no_real_time(
    tiny, context_for, drive
) -> None:
    context = context_for(tiny(mode="async", delays={0: 1000.0}))
    updates = drive(context, None, steps=3).outcome.updates
    assert max(u[4] for u in updates) >= 3000.0


@pytest.fixture
def wall(tiny, context_for):
    """Return the virtual seconds that a run of 10 steps takes."""

    def measure(n_workers: int, costs: Costs, mode: str = "async", **settings) -> float:
        context = context_for(tiny(mode=mode, **settings))
        training = FreeTraining(context.spec, context, None, None, None)
        training.prepare(VirtualExecutor(context, n_workers, costs))
        training.run(lambda p, b: SplitsEvaluation(context, p, b))
        return training.journal.wall_time_s

    return measure


def test_costs__a_synchronous_round_takes_what_its_parts_take(
    tiny, context_for, drive
) -> None:
    costs = Costs(
        task_s=1.0,
        update_s=10.0,
        score_s=400.0,
        latency_s=1e3,
        start_s=1e4,
        hop_s=1e5,
        move_s=1e6,
        share_s=1e7,
        publish_s=1e8,
        read_s=1e9,
    )
    around = 2 * costs.latency_s + costs.start_s + 2 * costs.hop_s
    around += costs.publish_s + costs.read_s

    def round_s(n_workers: int) -> float:
        context = context_for(tiny())
        executor = VirtualExecutor(context, n_workers, costs)
        updates = drive(context, 0, 4, wrap=lambda _: executor).outcome.updates
        ends = [max(u[4] for u in updates if u[1] == step) for step in range(4)]
        return ends[3] - ends[2]

    assert round_s(1) == pytest.approx(around + 1.0 + 3 * 10.0 + 400.0, rel=1e-12)
    # the second worker: 1 of 3 blocks, 2 of 4 shards, two moves, one further share
    expected = around + 2 * 1.0 + 10.0 + 200.0 + 2e6 + 1e7
    assert round_s(2) == pytest.approx(expected, rel=1e-12)


def test_costs__a_score_is_dealt_by_whole_shards(wall) -> None:
    costs = Costs(update_s=0.0, score_s=0.1, latency_s=0.0)
    seconds = {n: wall(n, costs, "sync", n_shards=4) for n in (1, 2, 3, 4, 9)}
    assert seconds[2] == pytest.approx(0.5 * seconds[1])
    assert seconds[3] == pytest.approx(seconds[2])
    assert seconds[4] == pytest.approx(0.25 * seconds[1])
    assert seconds[9] == pytest.approx(seconds[4])


def test_costs__the_client_takes_one_task_after_another(wall) -> None:
    costs = Costs(update_s=0.0, score_s=0.0, latency_s=0.0, task_s=0.01)
    few, many = (wall(n, costs, n_shards=64) for n in (2, 64))
    assert many > 10 * 60 * 0.01
    assert many > 8 * few


@pytest.mark.parametrize("publish_s", [0.0, 0.001])
def test_costs__a_publication_that_takes_time_waits_for_the_first_worker(
    tiny, context_for, publish_s
) -> None:
    context = context_for(tiny(mode="async", delays={0: 1.0}))
    executor = VirtualExecutor(context, 2, Costs(0.0, 0.2, 0.0, publish_s=publish_s))
    points = {n: point_of(context.init_node(n)[1]) for n in range(3)}
    executor.start_at(LossRecord("run", 0, (1.0,), (0, 0, 0)), 0.0)
    executor.submit_score(ScoreTask(1, (0, 0, 0), points, 0))
    executor.submit_update(UpdateTask(0, (0, 1), 0, 0))
    answers = [executor.poll(0.0)[0] for _ in range(2)]
    scored = next(one for one in answers if isinstance(one, ScoreDone))
    # the share of 0.1 s, then the delayed update, whose worker is to publish
    assert scored.end == pytest.approx(1.1 + publish_s if publish_s else 0.1)


def test_resume__continues_the_virtual_clock(tiny, context_for) -> None:
    executor = VirtualExecutor(context_for(tiny(mode="async")))
    executor.start_at(LossRecord("run", 6, (1.0,), (6, 6, 6)), 2.5)
    assert executor.now() == 2.5
    assert executor.board.newest(6, 0.0).version == 6


def test_own_worker__is_busy_with_its_block_alone(tiny, context_for, drive) -> None:
    context = context_for(tiny(mode="async", own_worker=[0], delays={0: 0.2}))
    outcome = drive(context, None, steps=6, n_workers=3).outcome
    workers = {
        node: {u[5] for u in outcome.updates if u[0] == node} for node in range(3)
    }
    assert workers[0] == {"virtual-2"}
    assert not workers[0] & (workers[1] | workers[2])
