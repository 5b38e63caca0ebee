import pickle
from dataclasses import fields, is_dataclass, replace

import numpy as np
import pytest
import torch

from blocks.algorithm import (
    Information,
    LossRecord,
    Node,
    Observation,
    step_rng,
)
from blocks.nd_cao import NDCAO
from blocks.probes import directions, probe_points

D = 20


class NoOracle:
    """An oracle that fails on any question but its device."""

    device = torch.device("cpu")

    def loss(self, params):
        raise AssertionError("ND-CAO asked for a loss")

    def gradient(self, params, buffers):
        raise AssertionError("ND-CAO asked for a gradient")


def observe(record, step, n_steps=100):
    return Observation(step, n_steps, Information.SHARED_LOSS, record)


def record_of(version, losses, steps, subset=0):
    return LossRecord("run", version, tuple(losses), tuple(steps), subset)


def init(algorithm, params, index=0, n_nodes=1, seed=7):
    node = Node(index, n_nodes, None, seed)
    return algorithm.init(node, params, NoOracle(), step_rng(seed, index, -1))


def step(algorithm, state, record, k, n_steps=100):
    rng = step_rng(state.seed, state.index, k)
    return algorithm.step(state, observe(record, k, n_steps), NoOracle(), rng)


def quadratic(x):
    scales = torch.linspace(1.0, 3.0, x.shape[-1])
    return float((scales * (x - 0.5).square()).sum())


def train(algorithm, n_steps, n_nodes=2, loss=quadratic, delays=0, seed=7):
    """Run blocks of D parameters each; their joined answers and last states.

    ``delays``: every block folds a record only after 0 to this many further versions.
    """
    rng = np.random.default_rng(seed)
    states, messages = zip(
        *(init(algorithm, torch.zeros(D), i, n_nodes, seed) for i in range(n_nodes)),
        strict=True,
    )
    states, messages = list(states), list(messages)
    taken, busy = [0] * n_nodes, [0] * n_nodes
    version = 0
    while min(taken) < n_steps:
        record = record_of(
            version, score(algorithm, messages, taken, seed, loss), taken
        )
        for i in range(n_nodes):
            if busy[i]:
                busy[i] -= 1
                continue
            if taken[i] == n_steps:
                continue
            states[i], messages[i] = step(
                algorithm, states[i], record, taken[i], n_steps
            )
            taken[i] += 1
            busy[i] = int(rng.integers(0, delays + 1))
        version += 1
    return torch.cat([message.solution for message in messages]), states


def score(algorithm, messages, taken, seed, loss):
    if algorithm.probes == 1:
        return [loss(torch.cat([m.point for m in messages]))]
    probes = []
    for i, message in enumerate(messages):
        dirs = directions(seed, i, taken[i], algorithm.probes // 2, D, "sign")
        probes.append(probe_points(message.point, message.probe_std, dirs))
    return [loss(x) for x in torch.cat(probes, 1)]


def arrays_of(value):
    """All arrays and numbers of a state, depth first."""
    if is_dataclass(value):
        for f in fields(value):
            yield from arrays_of(getattr(value, f.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from arrays_of(item)
    elif isinstance(value, torch.Tensor):
        yield value.numpy().copy()
    else:
        assert isinstance(value, int | float | str | np.ndarray | None)
        yield np.array(value)


def same(left, right):
    left, right = list(arrays_of(left)), list(arrays_of(right))
    return len(left) == len(right) and all(
        np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        for a, b in zip(left, right, strict=True)
    )


VARIANTS = [
    NDCAO(window=20, step_size=0.05),
    NDCAO(window=20, step_size=0.05, screening="explicit", candidates=50),
    NDCAO(window=20, step_size=0.05, exploration_kept=True),
    NDCAO(estimator="kernel", window=20, step_size=0.05, candidates=100),
    NDCAO(estimator="monomials", window=20, candidates=100, monomials_kept=0.5),
    NDCAO(window=24, probes=4, step_size=0.05),
    NDCAO(window=20, step_size=0.05, images=(2, 3, 3), smoothing=0.5),
]
IDS = ["linear", "explicit", "kept", "kernel", "monomials", "probes", "smooth"]


@pytest.mark.parametrize("algorithm", VARIANTS, ids=IDS)
def test_nd_cao__step_is_pure_and_leaves_its_inputs_alone(algorithm):
    _, states = train(algorithm, 30)
    before = list(arrays_of(states[0]))
    record = record_of(99, [0.5 + 0.1 * i for i in range(algorithm.probes)], [30, 30])
    first = step(algorithm, states[0], record, 30)
    second = step(algorithm, states[0], record, 30)
    assert same(first, second)
    for a, b in zip(before, arrays_of(states[0]), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("algorithm", VARIANTS, ids=IDS)
def test_nd_cao__pickled_state_continues_bit_for_bit(algorithm):
    _, states = train(algorithm, 27)
    state, twin = states[1], pickle.loads(pickle.dumps(states[1]))
    for k in range(27, 60):
        losses = [1.0 / (k + i) for i in range(algorithm.probes)]
        record = record_of(k, losses, [k, k])
        state, message = step(algorithm, state, record, k)
        twin, twin_message = step(algorithm, twin, record, k)
        assert torch.equal(message.point, twin_message.point)
        assert torch.equal(message.solution, twin_message.solution)
        twin = pickle.loads(pickle.dumps(twin))
    assert same(state, twin)


def test_nd_cao__state_rebuilt_from_unaligned_arrays_continues_bit_for_bit():
    def rebuilt(value):
        if is_dataclass(value):
            return replace(
                value,
                **{f.name: rebuilt(getattr(value, f.name)) for f in fields(value)},
            )
        if isinstance(value, tuple):
            return tuple(rebuilt(item) for item in value)
        if isinstance(value, torch.Tensor):
            raw = b"\0" * value.element_size() + value.numpy().tobytes()
            array = np.frombuffer(bytearray(raw), dtype=value.numpy().dtype)[1:]
            return torch.from_numpy(array.reshape(value.shape))
        return value

    algorithm = VARIANTS[0]
    _, states = train(algorithm, 27)
    state, twin = states[0], rebuilt(states[0])
    for k in range(27, 60):
        record = record_of(k, [1.0 / k], [k, k])
        state, message = step(algorithm, state, record, k)
        twin, twin_message = step(algorithm, twin, record, k)
        assert torch.equal(message.point, twin_message.point)
        twin = rebuilt(twin)


@pytest.mark.parametrize("algorithm", VARIANTS, ids=IDS)
def test_nd_cao__state_is_made_of_arrays_and_numbers(algorithm):
    _, states = train(algorithm, 5)
    assert len(list(arrays_of(states[0]))) > 10


def test_nd_cao__first_point_is_the_initial_parameters():
    params = torch.linspace(-1, 1, D)
    state, message = init(NDCAO(), params)
    assert torch.equal(message.point, params)
    assert torch.equal(message.solution, params)
    assert message.probe_std == 0.0
    before = params.clone()
    params += 1.0
    assert torch.equal(state.centre, before)


def test_nd_cao__window_holds_scored_pairs_only():
    seen = []

    def loss(x):
        seen.append((x[:D].clone(), quadratic(x)))
        return seen[-1][1]

    algorithm = NDCAO(window=10, step_size=0.05)
    _, (state, _) = train(algorithm, 34, loss=loss)
    window = state.window
    assert window.n_pairs == 10
    points = torch.stack([point for point, _ in seen[-10:]])
    assert window.losses.tolist() == [value for _, value in seen[-10:]]
    assert torch.allclose(window.rows + window.anchor, points, atol=1e-6)


def test_nd_cao__loss_is_attributed_to_the_point_that_was_scored():
    algorithm = NDCAO(window=10, step_size=0.1)
    state, message = init(algorithm, torch.zeros(D), index=1, n_nodes=2)
    sent = [message.point]
    # Version 0 scored step 0; the next records still score step 0, then jump to step 2.
    for k, scored in enumerate([0, 0, 2, 2, 3]):
        state, message = step(
            algorithm, state, record_of(k, [float(k)], [9, scored]), k
        )
        sent.append(message.point)
    expected = torch.stack([sent[s] for s in (0, 0, 2, 2, 3)])
    held = state.window.rows + state.window.anchor
    assert torch.allclose(held, expected, atol=1e-7)
    assert state.window.losses.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert [entry.step for entry in state.sent] == [3, 4, 5]  # older ones are dropped


def test_nd_cao__record_already_folded_changes_nothing_but_is_answered():
    algorithm = NDCAO(step_size=0.1)
    state, _ = init(algorithm, torch.zeros(D))
    state, message = step(algorithm, state, record_of(4, [1.0], [0]), 0)
    again, repeated = step(algorithm, state, record_of(4, [1.0], [0]), 1)
    older, _ = step(algorithm, again, record_of(3, [9.0], [0]), 2)
    assert same(again, state)
    assert same(older, state)
    assert torch.equal(repeated.point, message.point)
    # The point of step 1 stands for steps 2 and 3 as well.
    later, _ = step(algorithm, older, record_of(5, [2.0], [3]), 3)
    assert torch.allclose(later.window.rows[-1] + later.window.anchor, message.point)


def test_nd_cao__score_of_a_forgotten_point_adds_no_pair():
    algorithm = NDCAO(step_size=0.1)
    state, _ = init(algorithm, torch.zeros(D))
    for k in range(3):
        state, _ = step(algorithm, state, record_of(k, [1.0 - 0.1 * k], [k]), k)
    late, _ = step(algorithm, state, record_of(7, [0.1], [0]), 3)
    assert late.window.n_pairs == 3
    assert late.version == 7


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), -float("inf")])
def test_nd_cao__loss_that_is_not_finite_gives_a_random_move(loss):
    algorithm = NDCAO(window=10, step_size=0.05)
    _, (state, _) = train(algorithm, 12)
    after, message = step(algorithm, state, record_of(12, [loss], [12, 12]), 12)
    assert after.window.n_pairs == state.window.n_pairs
    assert torch.equal(after.centre, state.centre)
    assert torch.isfinite(message.point).all()
    assert not torch.equal(message.point, state.sent[-1].point)
    then, _ = step(algorithm, after, record_of(13, [0.3], [13, 13]), 13)
    assert not torch.equal(then.centre, after.centre)


def test_nd_cao__window_without_information_gives_a_random_move():
    algorithm = NDCAO(window=10, step_size=0.1, schedule="constant")
    state, _ = init(algorithm, torch.zeros(D))
    for k in range(6):  # six losses of one and the same point
        state, message = step(algorithm, state, record_of(k, [float(k)], [0]), k)
    assert torch.equal(state.centre, torch.zeros(D))
    std = float((message.point - state.centre).std())
    assert std == pytest.approx(0.1 * 0.3, rel=0.5)  # α ρ


def test_nd_cao__centre_does_not_follow_the_exploration():
    algorithm = NDCAO(window=20, step_size=0.1)
    state, _ = init(algorithm, torch.zeros(D))
    for k in range(20):
        record = record_of(k, [quadratic(state.sent[-1].point)], [k])
        moved, message = step(algorithm, state, record, k)
        if k >= 2:
            shift, noise = (
                moved.centre - state.centre,
                message.point - moved.centre,
            )
            assert float(shift.norm()) > 0
            cosine = shift @ noise / (shift.norm() * noise.norm())
            assert abs(float(cosine)) < 1e-3
            assert torch.equal(message.solution, moved.centre)
        state = moved


def test_nd_cao__kept_exploration_is_in_the_answer():
    algorithm = NDCAO(window=20, step_size=0.1, exploration_kept=True)
    _, (state, _) = train(algorithm, 10)
    assert torch.equal(state.centre, state.sent[-1].point)


def test_nd_cao__new_scoring_subset_keeps_pairs_with_an_intercept_of_their_own():
    algorithm = NDCAO(window=30, step_size=0.05)

    def run(offset):
        state, message = init(algorithm, torch.zeros(D))
        for k in range(25):
            subset = k // 10
            loss = quadratic(message.point) + offset * subset
            record = record_of(k, [loss], [k], subset)
            state, message = step(algorithm, state, record, k)
        return message.solution

    assert torch.allclose(run(0.0), run(1.0), atol=1e-4)


@pytest.mark.parametrize(
    ("algorithm", "n_steps", "bound"),
    [
        (NDCAO(window=40, step_size=0.05, step_size_final=5e-4), 800, 0.05),
        (
            NDCAO(
                window=40,
                step_size=0.05,
                step_size_final=5e-4,
                screening="explicit",
                candidates=50,
            ),
            800,
            0.5,
        ),
        (NDCAO(window=80, probes=8, step_size=0.05, step_size_final=5e-4), 400, 1e-3),
        (
            NDCAO(
                estimator="kernel",
                window=60,
                step_size=0.03,
                step_size_final=1e-3,
                candidates=200,
            ),
            400,
            0.1,
        ),
        (
            NDCAO(
                estimator="monomials",
                exploration=1.0,
                exploration_kept=True,
                window=60,
                step_size=0.05,
                step_size_final=1e-3,
                candidates=200,
            ),
            400,
            1.0,
        ),
    ],
    ids=["linear", "explicit", "probes", "kernel", "monomials"],
)
def test_nd_cao__reaches_the_minimum_of_a_quadratic(algorithm, n_steps, bound):
    assert quadratic(torch.zeros(2 * D)) == pytest.approx(20.0)
    answer, _ = train(algorithm, n_steps)
    assert quadratic(answer) < bound


def test_nd_cao__asynchronous_blocks_reach_the_same_minimum():
    algorithm = NDCAO(window=40, step_size=0.1, step_size_final=5e-3)
    assert quadratic(torch.zeros(3 * D)) == pytest.approx(30.0)
    answer, _ = train(algorithm, 800, n_nodes=3, delays=3)
    assert quadratic(answer) < 1.0


def test_nd_cao__wrong_number_of_losses_is_refused():
    algorithm = NDCAO()
    state, _ = init(algorithm, torch.zeros(D))
    with pytest.raises(ValueError, match=r"`record.losses` must hold `probes` = 1"):
        step(algorithm, state, record_of(0, [1.0, 2.0], [0]), 0)


def test_nd_cao__smooth_candidates_move_neighbouring_weights_together():
    algorithm = NDCAO(step_size=0.1, images=(1, 4, 4), smoothing=1.0)
    params = torch.linspace(-1, 1, D)
    state, message = init(algorithm, params)
    assert torch.equal(message.point, params)
    moves = []
    for k in range(2_000):  # never enough pairs: random moves only
        _, message = step(algorithm, state, record_of(k, [1.0], [0]), k, 10**9)
        moves.append(message.point - params)
    correlations = torch.corrcoef(torch.stack(moves).T)
    assert float(correlations[0, 1]) > 0.5
    assert float(correlations[0, 4]) > 0.5
    assert abs(float(correlations[0, 17])) < 0.1  # outside the image
    assert float(torch.stack(moves).std(0).std()) < 0.1 * 0.03  # equal variance
