"""Mean and standard deviation of pixels, from exact sums: the same on every machine.

They enter the content hash of a store. A sum in floating point depends on the order of
its terms, which threads, libraries and processors choose; integers do not.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

_PIECE = 2**20  # values at a time: what one needs in between is a few dozen megabytes
_MANTISSA_BITS = 24
# float32 are whole multiples of 2^-149; frexp gives exponents from -148 on.
_LEAST_EXPONENT = -148
_N_EXPONENTS = 128 - _LEAST_EXPONENT + 1


class Moments:
    """Mean and standard deviation of each channel of uint8 or float32 images.

    The sums are exact, so pieces may be cut and ordered in any way, and each result is
    rounded in one fixed way.

    Parameters
    ----------
    n_channels : int — C.
    scale : int — what pixels are divided by, such as 255.
    """

    def __init__(self, n_channels: int, scale: int) -> None:
        self._scale = scale
        self._n = 0  # values of each channel so far
        self._sums = [Fraction(0)] * n_channels
        self._squares = [Fraction(0)] * n_channels

    def add(self, images: np.ndarray) -> None:
        """Add (m, C, H, W) images, uint8 or finite float32."""
        if not images.size:
            return
        self._n += images.size // images.shape[1]
        exact = _integer_sums if images.dtype == np.uint8 else _float_sums
        for channel in range(images.shape[1]):
            values = images[:, channel].ravel()
            for start in range(0, len(values), _PIECE):
                total, squares = exact(values[start : start + _PIECE])
                self._sums[channel] += total
                self._squares[channel] += squares

    @property
    def mean(self) -> list[float]:
        """The mean of each channel, of the pixels divided by ``scale``."""
        n = max(self._n, 1)
        return [float(total / (n * self._scale)) for total in self._sums]

    @property
    def std(self) -> list[float]:
        """The standard deviation of each channel; 1 where the channel is constant."""
        n = max(self._n, 1)
        found = []
        for total, squares in zip(self._sums, self._squares, strict=True):
            variance = (squares - total * total / n) / (n * self._scale**2)
            found.append(math.sqrt(variance) if variance else 1.0)
        return found


def _integer_sums(values: np.ndarray) -> tuple[Fraction, Fraction]:
    counts = np.bincount(values, minlength=256)
    levels = np.arange(256)
    return Fraction(int(counts @ levels)), Fraction(int(counts @ levels**2))


def _float_sums(values: np.ndarray) -> tuple[Fraction, Fraction]:
    """Return the exact sums of at most ``_PIECE`` float32 and of their squares.

    A value is m · 2^(e − 24) with whole m. Those of one e are added as whole numbers,
    the squares in two halves of 24 bits: all stay below 2^53, where float64 is exact.
    """
    fractions, exponents = np.frexp(values)
    mantissas = np.rint(fractions.astype(np.float64) * 2**_MANTISSA_BITS)
    squares = mantissas.astype(np.int64) ** 2
    bins = exponents - _LEAST_EXPONENT

    def sums(weights: np.ndarray) -> list[int]:
        added = np.bincount(bins, weights=weights, minlength=_N_EXPONENTS)
        return [int(value) for value in added]

    total = _joined(sums(mantissas), 1)
    low = _joined(sums(squares & (2**_MANTISSA_BITS - 1)), 2)
    high = _joined(sums(squares >> _MANTISSA_BITS), 2)
    return total, low + high * 2**_MANTISSA_BITS


def _joined(sums: list[int], power: int) -> Fraction:
    """Return Σ_e sums[e] · 2^(power · (e − 24))."""
    whole = sum(value << (power * index) for index, value in enumerate(sums) if value)
    return whole * Fraction(2) ** (power * (_LEAST_EXPONENT - _MANTISSA_BITS))
