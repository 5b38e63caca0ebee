"""The virtual clock: the same run every time, stragglers, and barrier rounds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.asynchronous import FreeTraining, SplitsEvaluation
from pipeline.engines import InProcess
from pipeline.train import train
from pipeline.updates import message_of
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


def test_costs__more_workers_score_faster(tiny, context_for) -> None:
    def wall(n_workers: int) -> float:
        context = context_for(tiny(mode="async"))
        executor = VirtualExecutor(context, n_workers, Costs(0.001, 0.1, 0.001))
        training = FreeTraining(context.spec, context, None, None, None)
        training.prepare(executor)
        training.run(lambda p, b: SplitsEvaluation(context, p, b))
        return training.journal.wall_time_s

    assert wall(4) < 0.5 * wall(1)


def test_resume__continues_the_virtual_clock(tiny, context_for) -> None:
    from blocks.algorithm import LossRecord

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
