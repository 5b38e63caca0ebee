"""NEXT: its invariants, and an independent replay in numpy, all in float64."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from blocks.algorithm import Gradient, Node, Observation
from blocks.linearised import Linearised, loss_slope
from blocks.next import NEXT
from blocks.team import Team, inbox_of, listens
from blocks.topology import adjacency, metropolis_weights

N, P = 5, 4


def squared(logits, targets):
    return (logits - targets).square().sum(1)


def logistic(logits, targets):
    return functional.softplus(-targets * logits[:, 0])


@dataclass
class Data:
    """Private samples of each node, and an oracle on them that answers in float64."""

    inputs: list[torch.Tensor]  # by node, (n_i, C, P)
    targets: list[torch.Tensor]
    bend: float = 0.1  # outputs are u + bend·u² with u = A w
    loss: object = squared
    batch: int = 0  # samples of a minibatch; 0: all
    asked: list[int] = field(default_factory=list)

    def team(self):
        return Team(tuple(len(x) for x in self.inputs), (0,) * len(self.inputs))

    def rows(self, node, minibatch):
        n = len(self.inputs[node])
        size = self.batch or n
        return [(size * minibatch + i) % n for i in range(size)]

    def oracle(self, node):
        return Private(self, node)


@dataclass
class Private:
    data: Data
    node: int

    def look(self, params, minibatch):
        """Logits, Jacobian, and the losses as a function of logits."""
        rows = self.data.rows(self.node, minibatch)
        inputs = self.data.inputs[self.node][rows]
        targets = self.data.targets[self.node][rows]
        self.data.asked.append(minibatch)
        u = inputs @ params
        jacobian = (1 + 2 * self.data.bend * u)[..., None] * inputs
        logits = u + self.data.bend * u * u
        return logits, jacobian, targets, lambda x: self.data.loss(x, targets)

    def linearised(self, params, buffers, minibatch):
        logits, jacobian, targets, losses = self.look(params, minibatch)

        def vjp(u):
            return torch.einsum("ncp,nc->p", jacobian, u)

        loss, slope = loss_slope(losses, logits)
        n = len(targets)
        gradient = vjp(slope / n)
        return Linearised(
            loss / n,
            gradient,
            buffers,
            logits,
            targets,
            losses,
            lambda p: jacobian @ p,
            vjp,
        )

    def gradient(self, params, buffers, minibatch):
        found = self.linearised(params, buffers, minibatch)
        return Gradient(found.loss, found.gradient, buffers)


def play(algorithm, data, n_rounds, start=None, n_steps=0):
    """Play synchronous rounds; returns the states, and the points by round and node."""
    team, rng = data.team(), np.random.default_rng(0)
    start = torch.zeros(data.inputs[0].shape[2]).double() if start is None else start
    made = [
        algorithm.init(Node(i, team.n_nodes, team=team), start, data.oracle(i), rng)
        for i in range(team.n_nodes)
    ]
    points = [np.stack([m.point.numpy() for _, m in made])]
    for k in range(n_rounds):
        payloads = {i: m.payload for i, (_, m) in enumerate(made)}
        new = []
        for i, (state, _) in enumerate(made):
            heard = listens(algorithm, i, team, k, ())
            inbox = inbox_of(i, heard, payloads)
            seen = Observation(k, n_steps, algorithm.information, None, inbox)
            new.append(algorithm.step(state, seen, data.oracle(i), rng))
        made = new
        points.append(np.stack([m.point.numpy() for _, m in made]))
    return [state for state, _ in made], np.array(points)


@pytest.fixture
def quadratic(rng):
    """Five nodes with shards of 6 to 10 samples, two outputs, four parameters."""
    sizes = (6, 8, 10, 7, 9)
    inputs = [torch.tensor(rng.standard_normal((n, 2, P))) for n in sizes]
    targets = [torch.tensor(rng.standard_normal((n, 2))) for n in sizes]
    return Data(inputs, targets)


@pytest.fixture
def classes(rng):
    """Logistic regression: 280 samples of 4 features in 5 equal shards."""
    features = rng.standard_normal((280, 1, P))
    noise = 4.0 * rng.standard_normal(280)
    noisy = features[:, 0] @ [1.0, -2.0, 0.5, 0.0] + noise
    inputs, labels = torch.tensor(features), torch.tensor(np.sign(noisy))
    return Data(list(inputs.chunk(N)), list(labels.chunk(N)), 0.0, logistic)


# -- an independent replay ----------------------------------------------------------


def local_solution(w, q, hessian, l1):
    """Minimise q'p + p'(hessian)p/2 + l1·|w + p|₁, coordinate by coordinate."""
    if l1 == 0:
        return np.linalg.solve(hessian, -q)
    x = w.copy()
    for _ in range(40):
        for j in range(len(x)):
            slope = q[j] + hessian[j] @ (x - w)
            free = x[j] - slope / hessian[j, j]
            x[j] = np.sign(free) * max(abs(free) - l1 / hessian[j, j], 0.0)
    return x - w


def replay(data, weights, n_rounds, start, partial, tau, l1, l2, cores):
    """The update law in numpy; returns the points by round and node."""
    sizes = np.array([len(x) for x in data.inputs])
    shares, n = sizes / sizes.sum(), len(sizes)

    def look(i, w, k):
        rows = data.rows(i, k)
        a, d = data.inputs[i].numpy()[rows], data.targets[i].numpy()[rows]
        u = a @ w
        jacobian = ((1 + 0.2 * u)[..., None] * a).reshape(-1, len(w))
        error = (u + 0.1 * u * u - d).reshape(-1)
        s = shares[i] / len(rows)
        return s, jacobian, 2 * s * jacobian.T @ error

    w = np.stack([start] * n)
    seen = [look(i, w[i], 0) for i in range(n)]
    y = np.stack([g for *_, g in seen])
    alpha, points = 0.5, [w.copy()]
    for k in range(n_rounds):
        z = np.empty_like(w)
        for i, (s, jacobian, g) in enumerate(seen):
            pi = n * y[i] - g
            q, nu = g + pi + 2 * l2 * w[i], tau + 2 * l2
            curvature = 2 * s * jacobian.T @ jacobian if partial else 0.0
            hessian = curvature + nu * np.eye(len(start))
            p = np.empty_like(q)
            for c in np.array_split(np.arange(len(q)), cores):
                p[c] = local_solution(w[i][c], q[c], hessian[np.ix_(c, c)], l1)
            z[i] = w[i] + alpha * p
        w = weights(k) @ z
        new = [look(i, w[i], k + 1) for i in range(n)]
        fresh, old = (np.stack([g for *_, g in x]) for x in (new, seen))
        y, seen = weights(k) @ y + fresh - old, new
        alpha *= 1 - 0.01 * alpha
        points.append(w.copy())
    return np.array(points)


@pytest.mark.parametrize("batch", [0, 4])
@pytest.mark.parametrize("cores", [1, 2])
@pytest.mark.parametrize(("l1", "l2"), [(0.0, 0.0), (0.0, 0.2), (0.3, 0.0), (0.3, 0.2)])
@pytest.mark.parametrize("linearisation", ["full", "partial"])
def test_next__is_the_law_written_in_numpy(
    quadratic, rng, linearisation, l1, l2, cores, batch
):
    quadratic.batch = batch
    start = rng.standard_normal(P)
    algorithm = NEXT(
        linearisation=linearisation,
        tau=12.0,
        l1=l1,
        l2=l2,
        cores=cores,
        inner_steps=100,
    )
    _, points = play(algorithm, quadratic, 12, torch.tensor(start))
    ring = metropolis_weights(adjacency("ring", N))
    partial = linearisation == "partial"
    expected = replay(
        quadratic, lambda k: ring, 12, start, partial, 12.0, l1, l2, cores
    )
    np.testing.assert_allclose(points, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("inner_steps", [5, 100])
def test_conjugate_gradients__and_sample_space_solve_the_same(
    quadratic, rng, inner_steps
):
    # Five steps for four parameters, 12 or more outputs: conjugate gradients; at 100
    # the space of outputs is the cheaper one.
    start = rng.standard_normal(P)
    algorithm = NEXT(linearisation="partial", tau=2.0, inner_steps=inner_steps)
    _, points = play(algorithm, quadratic, 20, torch.tensor(start))
    ring = metropolis_weights(adjacency("ring", N))
    expected = replay(quadratic, lambda k: ring, 20, start, True, 2.0, 0.0, 0.0, 1)
    np.testing.assert_allclose(points, expected, rtol=0, atol=1e-10)


def test_matchings__mix_in_the_pairs_of_the_step(quadratic, rng):
    start = rng.standard_normal(P)
    algorithm = NEXT(tau=12.0, graph="matchings", graph_seed=4)
    _, points = play(algorithm, quadratic, 30, torch.tensor(start))

    def weights(k):
        return metropolis_weights(adjacency("matchings", N, k, 4))

    expected = replay(quadratic, weights, 30, start, False, 12.0, 0.0, 0.0, 1)
    np.testing.assert_allclose(points, expected, rtol=0, atol=1e-10)


both_linearisations = pytest.mark.parametrize(
    "linearisation", ["full", pytest.param("partial", marks=pytest.mark.slow)]
)


# -- invariants ---------------------------------------------------------------------


@pytest.mark.parametrize("batch", [0, 4])
@pytest.mark.parametrize(
    ("linearisation", "graph"),
    [
        ("full", "ring"),
        ("full", "erdos-renyi"),
        ("full", "matchings"),
        ("partial", "ring"),
    ],
)
def test_tracker__mean_is_the_mean_of_the_gradients_last_added(
    quadratic, linearisation, graph, batch
):
    quadratic.batch = batch
    algorithm = NEXT(linearisation=linearisation, tau=30.0, graph=graph, inner_steps=6)
    states, _ = play(algorithm, quadratic, 1000)
    sizes = np.array(quadratic.team().n_samples)
    shares = sizes / sizes.sum()
    gradients = [c * s.gradient.numpy() for c, s in zip(shares, states, strict=True)]
    trackers = np.stack([s.payload[1].numpy() for s in states])
    mean = np.mean(gradients, axis=0)
    gap = np.abs(trackers.mean(axis=0) - mean).max()
    assert gap <= 1e-10 * max(1.0, np.abs(mean).max())


def pooled_optimum(data, l2=0.0):
    """Newton's method on the mean logistic loss of all samples plus l2·‖w‖²."""
    a = torch.cat(data.inputs).numpy()[:, 0]
    labels = torch.cat(data.targets).numpy()
    w = np.zeros(a.shape[1])
    for _ in range(50):
        wrong = 1 / (1 + np.exp(labels * (a @ w)))
        slope = -(a.T @ (labels * wrong)) / len(a) + 2 * l2 * w
        bend = (a.T * (wrong * (1 - wrong))) @ a / len(a) + 2 * l2 * np.eye(len(w))
        w -= np.linalg.solve(bend, slope)
    assert np.abs(slope).max() < 1e-14
    return w


@pytest.mark.parametrize("l2", [0.0, 0.01])
@both_linearisations
def test_ring__reaches_the_pooled_optimum_and_agrees(classes, linearisation, l2):
    algorithm = NEXT(linearisation=linearisation, tau=1.0, l2=l2, inner_steps=5)
    _, points = play(algorithm, classes, 2000)
    assert np.abs(points[-1] - pooled_optimum(classes, l2)).max() <= 1e-8
    assert np.abs(points[-1] - points[-1].mean(axis=0)).max() <= 1e-10


@pytest.mark.parametrize("l2", [0.0, 0.05])
def test_complete_graph__every_node_is_the_centralised_iterate(classes, rng, l2):
    start = rng.standard_normal(P)
    algorithm = NEXT(tau=1.0, l2=l2, graph="complete")
    _, points = play(algorithm, classes, 100, torch.tensor(start))
    a = torch.cat(classes.inputs).numpy()[:, 0]
    labels = torch.cat(classes.targets).numpy()
    w, alpha = start.copy(), 0.5
    for k in range(101):
        np.testing.assert_allclose(points[k] - w, 0.0, atol=1e-10)
        slope = -(a.T @ (labels / (1 + np.exp(labels * (a @ w))))) / len(a)
        w = w + alpha * ((w - slope) / (1 + 2 * l2) - w)
        alpha *= 1 - 0.01 * alpha


@both_linearisations
def test_l1__limit_point_fulfils_the_pooled_conditions_with_zeros(
    classes, linearisation
):
    l1 = 0.08
    algorithm = NEXT(linearisation=linearisation, tau=1.0, l1=l1, inner_steps=25)
    _, points = play(algorithm, classes, 1500)
    w = points[-1].mean(axis=0)
    a = torch.cat(classes.inputs).numpy()[:, 0]
    labels = torch.cat(classes.targets).numpy()
    slope = -(a.T @ (labels / (1 + np.exp(labels * (a @ w))))) / len(a)
    zero = np.abs(w) < 1e-8
    assert 0 < zero.sum() < P
    np.testing.assert_allclose(slope[~zero], -l1 * np.sign(w[~zero]), atol=1e-7)
    assert (np.abs(slope[zero]) < l1).all()


def test_one_node__is_gradient_descent(classes):
    alone = Data([torch.cat(classes.inputs)], [torch.cat(classes.targets)])
    alone = replace(alone, bend=0.0, loss=logistic)
    _, points = play(NEXT(tau=1.0), alone, 20)
    w, alpha = torch.zeros(P).double(), 0.5
    for k in range(21):
        np.testing.assert_allclose(points[k, 0], w.numpy(), atol=1e-12)
        w = w - alpha * alone.oracle(0).gradient(w, None, 0).gradient
        alpha *= 1 - 0.01 * alpha


class Subtracting:
    """An oracle whose gradients come out as if the tracker took the difference away."""

    def __init__(self, oracle):
        self.oracle, self.last, self.told = oracle, None, None

    def gradient(self, params, buffers, minibatch):
        answer = self.oracle.gradient(params, buffers, minibatch)
        change = 0.0 if self.last is None else answer.gradient - self.last
        self.told = answer.gradient if self.told is None else self.told - change
        self.last = answer.gradient
        return replace(answer, gradient=self.told)


@pytest.mark.parametrize("wrong", [False, True])
def test_tracker__with_a_minus_sign_diverges(quadratic, wrong):
    straight = replace(quadratic, bend=0.0)
    oracles = [straight.oracle(i) for i in range(N)]
    if wrong:
        oracles = [Subtracting(oracle) for oracle in oracles]
    straight.oracle = lambda i: oracles[i]
    _, points = play(NEXT(tau=12.0), straight, 1000)
    a = torch.cat(quadratic.inputs).numpy().reshape(-1, P)
    optimum = np.linalg.lstsq(a, torch.cat(quadratic.targets).numpy().ravel())[0]
    away = np.abs(points[-1] - optimum).max()
    assert away > 1e6 if wrong else away < 1e-8


# -- what is asked, and a loss that is refused ---------------------------------------


def test_minibatches__the_old_point_is_never_asked_about_again(quadratic):
    quadratic.batch = 4
    play(NEXT(tau=12.0), quadratic, 3, n_steps=3)
    # init asks about minibatch 0, step k about k + 1, the last step about nothing.
    assert quadratic.asked == [0] * N + [1] * N + [2] * N


@pytest.mark.parametrize("linearisation", ["full", "partial"])
def test_last_step__mixes_without_a_gradient_or_a_payload(quadratic, linearisation):
    algorithm = NEXT(linearisation=linearisation, tau=12.0)
    _, planned = play(algorithm, quadratic, 3, n_steps=3)
    _, endless = play(algorithm, quadratic, 3)
    np.testing.assert_array_equal(planned, endless)


@pytest.mark.parametrize("inner_steps", [2, 100])
def test_partial__refuses_a_loss_that_is_not_convex_in_the_logits(
    quadratic, inner_steps
):
    caved = replace(quadratic, loss=lambda x, d: -100 * (x - d).square().sum(1))
    with pytest.raises(ValueError, match=r'`loss` must be convex.*Use .* = "full"'):
        play(NEXT(linearisation="partial", inner_steps=inner_steps), caved, 1)
