"""Who sees which samples: shares that do not overlap, and walks that all agree on."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.shards import Walks, deal

CLASSES = 10


def labelled(n_samples: int, seed: int = 0) -> np.ndarray:
    """Labels of all classes, shuffled, equally many of each up to one."""
    labels = np.arange(n_samples) % CLASSES
    return np.random.default_rng(seed).permutation(labels)


def classes_seen(shards: list[np.ndarray], labels: np.ndarray) -> list[int]:
    """How many classes each node sees."""
    return [len(set(labels[shard].tolist())) for shard in shards]


# -- dealing --------------------------------------------------------------------------


@given(
    st.integers(1, 400),
    st.integers(1, 12),
    st.integers(0, 2**63 - 1),
    st.floats(0, 1),
)
def test_deal__gives_every_node_equally_many_samples_and_none_twice(
    n_samples, n_nodes, seed, skew
) -> None:
    shards = deal(n_samples, n_nodes, seed, labelled(n_samples), skew)
    assert [len(shard) for shard in shards] == [n_samples // n_nodes] * n_nodes
    dealt = np.concatenate(shards)
    assert len(set(dealt.tolist())) == len(dealt)
    assert ((dealt >= 0) & (dealt < n_samples)).all()


@given(st.integers(0, 1000), st.sampled_from([0.0, 0.4, 1.0]))
def test_deal__is_a_function_of_the_seed(seed, skew) -> None:
    labels = labelled(120)
    one, two = (deal(120, 4, seed, labels, skew) for _ in range(2))
    other = deal(120, 4, seed + 1, labels, skew)
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a, b)
    assert any((a != b).any() for a, b in zip(one, other, strict=True))


def test_deal__needs_no_labels_without_skew() -> None:
    labels = labelled(90)
    for a, b in zip(
        deal(90, 3, 1, None, 0.0), deal(90, 3, 1, labels, 0.0), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("seed", range(5))
def test_deal__more_skew_leaves_a_node_fewer_classes(seed) -> None:
    labels = labelled(1000, seed)
    even, half, full = (deal(1000, 5, seed, labels, skew) for skew in (0.0, 0.5, 1.0))
    assert classes_seen(even, labels) == [CLASSES] * 5
    assert classes_seen(half, labels) == [CLASSES] * 5
    assert classes_seen(full, labels) == [2] * 5
    for shard in half:  # half of the shard is of two classes, or three at a cut
        counts = np.sort(np.bincount(labels[shard], minlength=CLASSES))[::-1]
        assert 100 <= counts[:3].sum() < 180
    for shard in even:
        assert np.bincount(labels[shard], minlength=CLASSES).max() < 40


# -- walking --------------------------------------------------------------------------


def walk(walks: Walks, node: int, steps: range, size: int) -> list[int]:
    """Samples of some steps, one after the other."""
    return [i for k in steps for i in walks.own(node, k, size).tolist()]


@given(st.integers(8, 200), st.integers(1, 6), st.integers(1, 40), st.booleans())
def test_own__an_epoch_shows_no_sample_twice_and_all_minibatches_are_full(
    n_train, n_nodes, size, whole
) -> None:
    walks = Walks(n_train, n_nodes, 7, whole)
    full = min(size, walks.n_own)
    per_epoch = walks.n_own // full
    for node in range(n_nodes):
        for epoch in range(2):
            steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
            seen = walk(walks, node, steps, size)
            assert len(seen) == len(set(seen)) == per_epoch * full
            assert all(0 <= i < n_train for i in seen)


def test_own__nodes_walk_disjoint_shards_in_every_epoch() -> None:
    walks = Walks(100, 4, 3)
    shards = [set(walk(walks, node, range(5), 5)) for node in range(4)]
    assert sum(map(len, shards)) == len(set.union(*shards)) == 100
    later = [set(walk(walks, node, range(5, 10), 5)) for node in range(4)]
    assert shards == later


def test_own__a_fresh_epoch_has_a_fresh_order() -> None:
    walks = Walks(100, 4, 3)
    first, second = (walk(walks, 1, range(5 * e, 5 * e + 5), 5) for e in (0, 1))
    assert sorted(first) == sorted(second)
    assert first != second


def test_own__whole_walks_cover_all_data_in_the_nodes_own_orders() -> None:
    walks = Walks(60, 3, 0, whole=True)
    orders = [walk(walks, node, range(6), 10) for node in range(3)]
    assert all(sorted(order) == list(range(60)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


@given(st.permutations([(n, k) for n in range(3) for k in (0, 4, 11, 12, 25)]))
def test_own__is_the_same_in_whatever_order_it_is_asked(asked) -> None:
    there, back = Walks(90, 3, 5), Walks(90, 3, 5)
    answers = {(n, k): there.own(n, k, 7) for n, k in asked}
    for (n, k), answer in sorted(answers.items()):
        np.testing.assert_array_equal(answer, back.own(n, k, 7))


def test_own__skewed_walks_ask_for_the_labels_once_and_show_few_classes() -> None:
    labels, asked = labelled(200), []

    def ask() -> np.ndarray:
        asked.append(True)
        return labels

    walks = Walks(200, 5, 2, skew=1.0, labels=ask)
    for node in range(5):
        seen = walk(walks, node, range(4), 10)
        assert len(set(labels[seen].tolist())) == 2
    assert len(asked) == 1
    even = Walks(200, 5, 2, labels=ask)
    even.own(0, 0, 10)
    assert len(asked) == 1


# -- minibatches that all share -------------------------------------------------------


@given(
    st.integers(4, 100),
    st.lists(st.integers(1, 20), min_size=1, max_size=5),
    st.integers(0, 30),
)
def test_pooled__parts_tile_the_minibatch(n_train, sizes, step) -> None:
    walks, total = Walks(n_train, len(sizes), 1), sum(sizes)
    cuts = np.cumsum([0, *sizes]).tolist()
    parts = [walks.pooled(step, total, (start, stop)) for start, stop in pairwise(cuts)]
    tiled = np.concatenate(parts)
    np.testing.assert_array_equal(tiled, walks.pooled(step, total, (0, total)))
    assert len(set(tiled.tolist())) == len(tiled) == min(total, n_train)


def test_pooled__an_epoch_shows_every_sample_once() -> None:
    walks = Walks(60, 4, 1)
    epochs = [
        [i for k in range(6 * e, 6 * e + 6) for i in walks.pooled(k, 10, (0, 10))]
        for e in (0, 1)
    ]
    assert all(sorted(seen) == list(range(60)) for seen in epochs)
    assert epochs[0] != epochs[1]


# -- in a run -------------------------------------------------------------------------


def test_context__skewed_replicas_of_digits_see_few_classes(tiny, context_for) -> None:
    def seen(skew: float) -> list[int]:
        config = tiny(algorithm={"kind": "local-sgd"}, blocks=None, nodes=5, skew=skew)
        data = context_for(config).data
        return [
            len(set(data.minibatch(node, 5, 0, 0)[1].tolist())) for node in range(5)
        ]

    assert seen(0.0) == [10] * 5
    assert max(seen(1.0)) <= 3


def test_context__whole_and_pooled_methods_use_all_samples(tiny, context_for) -> None:
    for kind, own in (("local-sgd", 1 / 4), ("selsync", 1.0)):
        context = context_for(tiny(algorithm={"kind": kind}, blocks=None))
        n_train = context.data.n_train
        assert context.team.n_samples == (int(n_train * own),) * 4
    context = context_for(tiny(algorithm={"kind": "dbs", "batch_size": 1000}))
    size = 4 * (context.data.n_train // 4)  # more than there is: cut
    payloads = [context.init_node(node)[1].payload for node in range(4)]
    assert all(bool(p[0].isfinite().all()) for p in payloads)
    assert sum(context.init_node(0)[0].sizes) == size
