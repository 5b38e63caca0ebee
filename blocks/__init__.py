"""The mathematics: partitions, algorithms, oracles. No I/O, no clock, no Dask."""

from __future__ import annotations

from typing import Any

from blocks.nd_cao import NDCAO
from blocks.open_es import OpenES
from blocks.sgd import SGD, AdamTraining

ALGORITHMS: dict[str, type[Any]] = {
    "nd-cao": NDCAO,
    "sgd": SGD,
    "adam": AdamTraining,
    "open-es": OpenES,
}
