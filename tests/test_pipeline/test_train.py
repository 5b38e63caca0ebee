"""One run from Python: budgets, stop reasons, probes, what algorithms may see."""

from __future__ import annotations

import math

import numpy as np
import pytest
from filelock import FileLock

from blocks.algorithm import Information, InformationError
from blocks.nd_cao import NDCAO
from pipeline.progress import Progress
from pipeline.run_store import open_run
from pipeline.train import train

SGD = {"kind": "sgd", "batch_size": 100}


def final(ds, name: str) -> int:
    return int(ds[name].values[-1])


def test_steps__are_as_many_loss_values_for_one_probe(tiny, tmp_path) -> None:
    by_steps = train(tiny(budget={"steps": 8}), results=tmp_path)
    by_values = train(tiny(budget={"loss_values": 8}), results=tmp_path)
    assert by_steps.attrs["params_sha256"] == by_values.attrs["params_sha256"]
    assert by_values.attrs["stop_reason"] == "budget: loss_values"
    assert by_values.attrs["n_loss_evals"] == final(by_values, "n_loss_evals") == 8


@pytest.mark.parametrize(
    ("algorithm", "budget", "n_rounds", "reason"),
    [
        ({}, {"steps": 5}, 5, "steps"),
        ({"probes": 4}, {"loss_values": 20}, 5, "loss_values"),
        ({"probes": 4}, {"loss_values": 23, "steps": 9}, 5, "loss_values"),
        ({}, {"samples": 1000}, 5, "samples"),
        ({"probes": 2}, {"samples": 2000}, 5, "samples"),
        (SGD, {"gradient_evals": 5}, 5, "gradient_evals"),
        (SGD, {"samples": 500}, 5, "samples"),
        (SGD, {"steps": 5, "gradient_evals": 50}, 5, "steps"),
    ],
)
def test_budget__ends_a_synchronous_run_at_the_round_that_uses_it_up(
    algorithm, budget, n_rounds, reason, tiny, tmp_path
) -> None:
    ds = train(tiny(algorithm=algorithm, budget=budget), results=tmp_path)
    assert ds.attrs["stop_reason"] == f"budget: {reason}"
    assert final(ds, "step") == n_rounds
    for name in set(budget) - {"steps"}:
        counter = {"loss_values": "n_loss_evals", "gradient_evals": "n_gradient_evals"}
        used = final(ds, counter.get(name, "n_samples"))
        assert used <= budget[name]


def test_budget_bytes__ends_a_run_at_the_round_that_reaches_it(tiny, tmp_path) -> None:
    one = train(tiny(budget={"steps": 1}), results=tmp_path)
    each = final(one, "bytes_moved")
    limit = 40 * each + each // 2
    ds = train(tiny(budget={"bytes": limit}), results=tmp_path)
    assert ds.attrs["stop_reason"] == "budget: bytes"
    assert final(ds, "step") == 41
    assert final(ds, "bytes_moved") == 41 * each


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_budget_seconds__ends_a_run(mode, tiny, tmp_path) -> None:
    ds = train(tiny(mode=mode, budget={"seconds": 0.2}), results=tmp_path)
    assert ds.attrs["stop_reason"] == "budget: seconds"
    assert ds.attrs["wall_time_s"] >= 0.2
    assert ds.attrs["status"] == "complete"


@pytest.mark.parametrize("budget", [{"loss_values": 9}, {"bytes": 30_000}])
def test_budget__ends_an_asynchronous_run_too(budget, tiny, tmp_path) -> None:
    ds = train(tiny(mode="async", budget=budget), results=tmp_path)
    assert ds.attrs["stop_reason"] == f"budget: {next(iter(budget))}"
    if "loss_values" in budget:
        assert ds.attrs["n_loss_evals"] == 9
    else:
        assert 30_000 <= ds.attrs["bytes_moved"] < 40_000


@pytest.mark.parametrize(
    ("mode", "algorithm"),
    [
        ("sync", {"step_size": 1e25}),
        ("async", {"step_size": 1e25}),
        ("sync", SGD | {"step_size": 1e25}),
    ],
)
@pytest.mark.parametrize("eval_every", [1, 1000])
def test_diverged__is_a_stop_reason_of_a_run_that_is_stored_and_opens(
    mode, algorithm, eval_every, tiny, tmp_path
) -> None:
    config = tiny(mode=mode, algorithm=algorithm, loss="squared", eval_every=eval_every)
    ds = train(config, results=tmp_path)
    assert ds.attrs["status"] == "diverged"
    assert ds.attrs["stop_reason"].startswith("diverged")
    stored = open_run(ds.attrs["store"])
    assert stored.attrs["status"] == "diverged"
    seen = stored.train_loss if algorithm.get("kind") == "sgd" else stored.score_loss
    assert not math.isfinite(seen.values[-1])


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize(
    "algorithm",
    [{"probes": 4}, {"kind": "open-es", "population_size": 6}],
    ids=["nd-cao", "open-es"],
)
def test_probes__k_losses_a_version_are_recorded(
    mode, algorithm, tiny, tmp_path
) -> None:
    ds = train(tiny(mode=mode, algorithm=algorithm), results=tmp_path)
    n_probes = ds.sizes["probe"]
    assert n_probes in (4, 6)
    assert ds.attrs["n_loss_evals"] == n_probes * ds.sizes["score"]
    assert ds.attrs["n_samples"] == 200 * ds.attrs["n_loss_evals"]
    np.testing.assert_allclose(ds.score_loss, ds.score_losses.mean("probe"))
    assert (np.ptp(ds.score_losses.values, axis=1) > 0).all()


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_evaluations__come_at_growing_steps_from_first_to_last(
    mode, tiny, tmp_path
) -> None:
    ds = train(tiny(mode=mode, budget={"steps": 10}, eval_every=4), results=tmp_path)
    assert ds.step.values.tolist() == [0, 4, 8, 10]
    assert ds.sizes["update"] == 30
    assert set(ds.update_step.values.tolist()) == set(range(1, 11))


def test_eval_every__changes_no_parameter(tiny, tmp_path) -> None:
    hashes = {
        train(tiny(eval_every=k), results=tmp_path, again=True).attrs["params_sha256"]
        for k in (1, 3, 1000)
    }
    assert len(hashes) == 1


def test_exists__a_stored_run_is_returned_and_trained_only_again(
    tiny, tmp_path
) -> None:
    first = train(tiny(), results=tmp_path)
    seen: list[Progress] = []
    second = train(tiny(), results=tmp_path, progress=seen.append)
    assert (second.attrs["status"], seen) == ("exists", [])
    third = train(tiny(), results=tmp_path, progress=seen.append, again=True)
    assert third.attrs["status"] == "complete"
    assert seen
    for ds in (second, third):
        assert ds.attrs["params_sha256"] == first.attrs["params_sha256"]


def test_progress__tells_rounds_and_losses_as_they_come(tiny, tmp_path) -> None:
    seen: list[Progress] = []
    train(tiny(), results=tmp_path, progress=seen.append)
    assert [p.phase for p in (seen[0], seen[-1])] == ["starting", "saving"]
    rounds = [p.round for p in seen]
    assert rounds == sorted(rounds)
    assert seen[-1].round == seen[-1].n_rounds == 8
    assert math.isfinite(seen[-1].loss)


def test_lock__a_run_that_another_process_trains_is_refused(tiny, tmp_path) -> None:
    run_id = train(tiny(), results=tmp_path).attrs["run_id"]
    with (
        FileLock(tmp_path / "default" / f".{run_id}.lock"),
        pytest.raises(RuntimeError, match=r"one process at a time.*trained by another"),
    ):
        train(tiny(), results=tmp_path, again=True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"delays": {7: 0.1}}, "`delays` must name blocks 0 to 2"),
        ({"own_worker": [9]}, "`own_worker` must name blocks 0 to 2"),
        ({"own_worker": [0, 1]}, "`own_worker` must leave a worker"),
        ({"init": "nobody"}, "`run` must be a run's id"),
        ({"model": {"name": "mlpp"}}, "`model"),
        ({"loss": "nowhere:fn"}, "nowhere"),
    ],
)
def test_bad_settings__are_clear_errors_and_nothing_is_stored(
    flags, message, tiny, tmp_path
) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(tiny(**flags), results=tmp_path)
    assert not list(tmp_path.rglob("*.zarr")) + list(tmp_path.rglob("*.npz"))


CHEATS = {
    "SHARED_LOSS": lambda seen, oracle, params: seen.record,
    "NEIGHBOURS": lambda seen, oracle, params: seen.inbox,
    "LOSS_ORACLE": lambda seen, oracle, params: oracle.loss(params),
    "GRADIENT_ORACLE": lambda seen, oracle, params: oracle.gradient(params, None),
    "JACOBIAN_ORACLE": lambda seen, oracle, params: oracle.linearised(params, None),
    "OUTPUT_ERROR": lambda seen, oracle, params: oracle.direct_feedback(
        params, None, None
    ),
    "OWN_ACTIVATIONS": lambda seen, oracle, params: oracle.direct_feedback(
        params, None, None
    ),
    "PER_SAMPLE_LOSS": lambda seen, oracle, params: oracle.activity_estimate(),
}


@pytest.mark.parametrize("mode", ["sync", "async"])
@pytest.mark.parametrize("flag", list(CHEATS))
def test_information__what_is_not_declared_raises_through_the_harness(
    flag, mode, tiny, tmp_path, monkeypatch
) -> None:
    def step(self, state, observation, oracle, rng):
        CHEATS[flag](observation, oracle, state.centre)
        return state, self._message(state)

    everything = Information(sum(f.value for f in Information))
    monkeypatch.setattr(NDCAO, "step", step)
    monkeypatch.setattr(NDCAO, "information", everything & ~Information[flag])
    if flag == "SHARED_LOSS":
        monkeypatch.setattr(NDCAO, "information", Information.GRADIENT_ORACLE)
    with pytest.raises(InformationError, match=flag):
        train(tiny(mode=mode), results=tmp_path)


def test_information__the_oracle_leads_to_no_model_and_no_data(
    tiny, context_for
) -> None:
    oracle = context_for(tiny())._oracle(0, 0)
    public = {name for name in dir(oracle) if not name.startswith("_")}
    assert public == {
        "activity_estimate",
        "common_loss",
        "counters",
        "device",
        "direct_feedback",
        "gradient",
        "linearised",
        "loss",
    }
