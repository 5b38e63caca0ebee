"""Deterministic minibatches and evaluation shards, resident in each process."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from blocks.algorithm import step_rng
from pipeline.config import RunConfig
from pipeline.data_store import DataStore
from pipeline.shards import Walks
from pipeline.standardise import Standardisation, standardisation

StoredSplit = Literal["train", "val", "test"]
Split = Literal["loss", "train", "val", "test"]

TRAIN_LOSS_SAMPLES = 20_000  # behind a reported `train_loss`, the same for all runs
_SUBSET = 2  # stream of `step_rng`


@dataclass(frozen=True, slots=True)
class _Images:
    """A split as stored: uint8 (or float32) images and int64 labels on the device."""

    images: Tensor  # (n, C, H, W)
    labels: Tensor  # (n,)


_IMAGES: OrderedDict[tuple[str, str, str], _Images] = OrderedDict()
_LOCK = threading.Lock()
_KEPT = 8  # splits a process keeps


def resident(store: DataStore, split: StoredSplit, device: torch.device) -> _Images:
    """Return the resident copy of a split, read and verified on first use."""
    key = (store.content_sha256, split, str(device))
    with _LOCK:
        if key not in _IMAGES:
            images, labels = store.load(split)
            _IMAGES[key] = _Images(
                torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device)
            )
        _IMAGES.move_to_end(key)
        while len(_IMAGES) > _KEPT:
            _IMAGES.popitem(last=False)
        return _IMAGES[key]


class ResidentData:
    """Batches of one run: standardised float32 tensors (n, C, H, W) and int64 labels.

    Splits: ``loss`` (the scoring subset: ``loss_samples`` training samples drawn from
    the run's seed, draw ``subset``), ``train`` (a fixed, evenly spaced part of the
    training samples, for reporting), ``val`` and ``test`` (whole). Each is cut into
    ``n_shards`` contiguous shards, and a shard into batches of ``batch_size``: shapes
    never depend on the number of workers.
    """

    def __init__(
        self,
        store: DataStore,
        config: RunConfig,
        device: torch.device,
        standard: Standardisation | None = None,
    ) -> None:
        self._store = store
        self._config = config
        self._device = device
        self._standard = standard
        self._scaled: tuple[Tensor, Tensor] | None = None
        self.n_train = store.n_train
        self.image_shape = store.image_shape
        self.n_loss = self.count(store, config)
        self._ready: dict[tuple[str, int, int], list[tuple[Tensor, Tensor]]] = {}
        self._draw = -1  # of the scoring subset, the last one wanted
        self._dealt: tuple[tuple[str, int], list[np.ndarray]] = (("", -1), [])
        self._lock = threading.Lock()
        self._walks: dict[int, Walks] = {}

    @property
    def standard(self) -> Standardisation:
        """What inputs are rid of and divided by; from the training split, once."""
        if self._standard is None:
            store = self._store
            images = resident(store, "train", self._device).images
            self._standard = standardisation(
                images, store.mean, store.std, store.pixel_scale, self._config.centring
            )
        return self._standard

    @staticmethod
    def count(store: DataStore, config: RunConfig) -> int:
        """Samples behind one loss value: ``loss_samples``, or all there are."""
        return min(config.loss_samples or store.n_train, store.n_train)

    def _take(self, split: Split, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        source = resident(
            self._store, "train" if split == "loss" else split, self._device
        )
        index = torch.from_numpy(indices).to(self._device)
        inputs = source.images.index_select(0, index).float()
        if self._scaled is None:
            scale = self._store.pixel_scale
            mean = torch.from_numpy(self.standard.mean * np.float32(scale))
            std = torch.from_numpy(self.standard.std * np.float32(scale))
            self._scaled = mean.to(self._device), std[:, None, None].to(self._device)
        inputs -= self._scaled[0]
        inputs /= self._scaled[1]
        return inputs, source.labels.index_select(0, index)

    def indices(self, split: Split, subset: int = 0) -> np.ndarray:
        """Sample indices (n,) int64 of a split, in the order they are scored."""
        if split == "loss":
            rng = step_rng(self._config.seed, 0, subset, purpose=_SUBSET)
            drawn = rng.choice(self.n_train, self.n_loss, replace=False, shuffle=False)
            return np.sort(drawn)
        if split == "train":
            n = min(self.n_train, TRAIN_LOSS_SAMPLES)
            return np.arange(n, dtype=np.int64) * self.n_train // n
        n = self._store.n_val if split == "val" else self._store.n_test
        return np.arange(n, dtype=np.int64)

    def batches(
        self, split: Split, shards: Iterable[int], subset: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of some shards, in shard order."""
        for shard in shards:
            yield from self._shard(split, shard, subset)

    def _shard(
        self, split: Split, shard: int, subset: int
    ) -> list[tuple[Tensor, Tensor]]:
        key = (split, shard, subset)
        with self._lock:
            if key not in self._ready:
                if split == "loss" and subset != self._draw:
                    self._turn_to(subset)
                part = self._parts(split, subset)[shard]
                size = self._config.batch_size
                cuts = range(0, len(part), size)
                self._ready[key] = [self._take(split, part[i : i + size]) for i in cuts]
            return self._ready[key]

    def some(self, n: int) -> tuple[Tensor, Tensor]:
        """Return ``n`` training samples, evenly spaced, in memory of their own."""
        return self._take("train", np.arange(n, dtype=np.int64) * self.n_train // n)

    def _turn_to(self, draw: int) -> None:
        """Keep a draw and its neighbours, and let go of all others.

        Shares of two versions alternate in asynchronous runs; a run that starts anew
        begins at the first draw again.
        """
        self._draw = draw
        self._ready = {
            key: batches
            for key, batches in self._ready.items()
            if key[0] != "loss" or abs(key[2] - draw) <= 1
        }

    def _parts(self, split: Split, subset: int) -> list[np.ndarray]:
        """Sample indices of all shards; those of the newest draw are kept."""
        if self._dealt[0] != (split, subset):
            parts = np.array_split(self.indices(split, subset), self._config.n_shards)
            self._dealt = (split, subset), parts
        return self._dealt[1]

    def walks(self, n_nodes: int) -> Walks:
        """Who of ``n_nodes`` replicas sees which samples when."""
        with self._lock:
            if n_nodes not in self._walks:
                self._walks[n_nodes] = Walks(
                    self.n_train,
                    n_nodes,
                    self._config.seed,
                    getattr(self._config.algorithm, "data", "shard") == "whole",
                    self._config.skew,
                    self._labels,
                )
            return self._walks[n_nodes]

    def _labels(self) -> np.ndarray:
        labels: np.ndarray = resident(self._store, "train", self._device).labels.numpy(
            force=True
        )
        return labels

    def minibatch(
        self, node: int, n_nodes: int, step: int, batch_size: int
    ) -> tuple[Tensor, Tensor]:
        """Return the minibatch of one node at one of its steps (0: all it has)."""
        walks = self.walks(n_nodes)
        size = batch_size or walks.n_own
        return self._take("train", walks.own(node, step, size))

    def pooled(
        self, n_nodes: int, step: int, size: int, part: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Return samples [start, stop) of the minibatch that all nodes share."""
        return self._take("train", self.walks(n_nodes).pooled(step, size, part))
