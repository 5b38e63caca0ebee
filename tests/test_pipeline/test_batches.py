"""Resident data: fixed subsets, shards whose shapes depend on nothing else, epochs."""

from __future__ import annotations

import weakref

import numpy as np
import pytest
import torch

from pipeline.data_store import open_store


def test_indices__the_scoring_subset_is_a_function_of_seed_and_draw(
    tiny, context_for
) -> None:
    one, two = context_for(tiny()).data, context_for(tiny()).data
    other = context_for(tiny(seed=1)).data
    np.testing.assert_array_equal(one.indices("loss", 3), two.indices("loss", 3))
    assert not np.array_equal(one.indices("loss", 0), one.indices("loss", 1))
    assert not np.array_equal(one.indices("loss"), other.indices("loss"))
    drawn = one.indices("loss")
    assert len(drawn) == len(set(drawn.tolist())) == one.n_loss == 200
    assert 0 <= drawn.min() <= drawn.max() < one.n_train


@pytest.mark.parametrize("split", ["loss", "train", "val", "test"])
def test_batches__shards_cover_a_split_once_and_in_order(
    split, tiny, context_for, digits
) -> None:
    config = tiny(n_shards=3, batch_size=50)
    data, store = context_for(config).data, open_store(digits)
    labels = [y for _, y in data.batches(split, range(3))]
    assert all(len(y) <= 50 for y in labels)
    _, stored = store.load("train" if split == "loss" else split)
    expected = stored[data.indices(split)]
    np.testing.assert_array_equal(torch.cat(labels).numpy(), expected)


@pytest.mark.parametrize("draws", [range(6), (9, 0, 1, 2, 3), (0, 1, 0, 1, 2, 1, 2)])
def test_batches__of_two_draws_are_kept_whatever_came_before(
    draws, tiny, context_for
) -> None:
    data = context_for(tiny(n_shards=3)).data
    seen = {
        draw: [
            weakref.ref(inputs) for inputs, _ in data.batches("loss", range(3), draw)
        ]
        for draw in draws
    }
    kept = {
        draw for draw, refs in seen.items() if any(ref() is not None for ref in refs)
    }
    assert kept == set(list(draws)[-2:])


def test_batches__pixels_are_standardised_by_the_training_samples(
    tiny, context_for
) -> None:
    def pixels(centring: str) -> torch.Tensor:
        data = context_for(tiny(centring=centring)).data
        return torch.cat([x for x, _ in data.batches("train", range(4))])

    by_channel, by_pixel = pixels("channel"), pixels("pixel")
    assert by_channel.dtype == by_pixel.dtype == torch.float32
    assert abs(float(by_channel.mean())) < 1e-4
    assert abs(float(by_channel.std()) - 1) < 1e-3
    assert float(by_pixel.mean(0).abs().max()) < 1e-4
    assert 0.5 < float(by_pixel.std()) <= 1.0


def test_minibatch__an_epoch_uses_every_sample_of_the_node_once(
    tiny, context_for
) -> None:
    data = context_for(tiny(algorithm={"kind": "sgd"})).data
    taken: list[int] = []
    data._take = lambda split, indices: taken.extend(indices.tolist())  # type: ignore
    n_batches = data.n_train // 2 // 64
    for node in (0, 1):
        for step in range(n_batches):
            data.minibatch(node, 2, step, 64)
    assert len(taken) == len(set(taken)) == 2 * n_batches * 64


def test_minibatch__is_a_function_of_node_and_step_in_any_order(
    tiny, context_for
) -> None:
    config = tiny(algorithm={"kind": "sgd"})
    there, back = context_for(config).data, context_for(config).data
    steps = [0, 5, 40, 41, 7]  # 40: the fourth epoch
    ahead = [there.minibatch(0, 1, k, 128)[0] for k in steps]
    behind = [back.minibatch(0, 1, k, 128)[0] for k in reversed(steps)]
    for a, b in zip(ahead, reversed(behind), strict=True):
        assert torch.equal(a, b)
    assert not torch.equal(ahead[0], there.minibatch(0, 1, 11, 128)[0])


def test_score__shards_scored_apart_are_the_shards_scored_together(
    tiny, context_for
) -> None:
    context = context_for(tiny(algorithm={"probes": 4}))
    messages = {n: context.init_node(n)[1] for n in range(context.n_nodes)}
    steps = [0] * context.n_nodes
    together = context.score(messages, steps, range(4), 0)
    apart = [context.score(messages, steps, [shard], 0)[0] for shard in (3, 1, 0, 2)]
    for shard, alone in zip((3, 1, 0, 2), apart, strict=True):
        np.testing.assert_array_equal(together[shard].sums, alone.sums)


def test_subset__changes_every_redraw_every_versions(tiny, context_for) -> None:
    fixed, redrawn = context_for(tiny()), context_for(tiny(redraw_every=3))
    assert [fixed.subset(v) for v in range(7)] == [0] * 7
    assert [redrawn.subset(v) for v in range(7)] == [0, 0, 0, 1, 1, 1, 2]


def test_resolve__too_few_samples_for_the_shards_is_an_error(tiny, context_for) -> None:
    with pytest.raises(ValueError, match="`loss_samples` must be at least `n_shards`"):
        context_for(tiny(loss_samples=3))
