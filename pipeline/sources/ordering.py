"""Deterministic orders and splits of labelled samples, with no random numbers."""

from __future__ import annotations

import math

import numpy as np

TEST_EVERY = 6  # one sample in six of every class goes to test


def class_ranks(labels: np.ndarray) -> np.ndarray:
    """Return each sample's position among the samples of its class.

    Parameters
    ----------
    labels : (n,) int array.

    Returns
    -------
    (n,) int64 array — 0 for the first sample of a class, 1 for the second, and so on.
    """
    order = np.argsort(labels, kind="stable")
    sizes = np.unique(labels, return_counts=True)[1]
    ranks = np.empty(len(labels), dtype=np.int64)
    ranks[order] = np.concatenate([np.arange(size) for size in sizes] or [order])
    return ranks


def held_out(labels: np.ndarray) -> np.ndarray:
    """Return which samples are for testing: every sixth of each class, (n,) bool."""
    mask: np.ndarray = class_ranks(labels) % TEST_EVERY == TEST_EVERY - 1
    return mask


def interleaved(labels: np.ndarray) -> np.ndarray:
    """Return an order of the samples in which every stretch has the classes' shares.

    A class of m samples has its k-th at the fraction (k + ½)/m of the way, so that the
    first N samples and the last 10 % are balanced as the whole is.

    Parameters
    ----------
    labels : (n,) int array.

    Returns
    -------
    (n,) int64 array — a permutation of 0…n − 1.
    """
    _, inverse, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    position = (class_ranks(labels) + 0.5) / sizes[inverse]
    return np.lexsort((labels, position))


def spread(n: int) -> np.ndarray:
    """Return 0…n − 1 in golden-ratio order: neighbours in a file end up far apart."""
    return np.argsort((np.arange(n) * ((math.sqrt(5) - 1) / 2)) % 1.0, kind="stable")
