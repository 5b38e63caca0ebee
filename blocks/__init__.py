"""The mathematics: partitions, algorithms, oracles. No I/O, no clock, no Dask."""

from __future__ import annotations

from typing import Any

from blocks.activity_perturbation import ActivityPerturbation
from blocks.all_reduce import AllReduceSGD
from blocks.async_sgd import AsyncSGD
from blocks.dbs import DBS
from blocks.dfa import DirectFeedback
from blocks.layerwise_async_sgd import LayerwiseAsyncSGD
from blocks.local_sgd import LocalSGD
from blocks.nd_cao import NDCAO
from blocks.next import NEXT
from blocks.node_based import NodeBased
from blocks.nosync import NoSync
from blocks.open_es import OpenES
from blocks.osp import OSP
from blocks.pso_ps import PSOPS
from blocks.random_search import RandomSearch
from blocks.selsync import SelSync
from blocks.sgd import SGD, AdamTraining
from blocks.spsa import SPSA

ALGORITHMS: dict[str, type[Any]] = {
    "nd-cao": NDCAO,
    "activity-perturbation": ActivityPerturbation,
    "next": NEXT,
    "nosync": NoSync,
    "pso-ps": PSOPS,
    "node-based": NodeBased,
    "selsync": SelSync,
    "dbs": DBS,
    "osp": OSP,
    "async-sgd": AsyncSGD,
    "layerwise-async-sgd": LayerwiseAsyncSGD,
    "sgd": SGD,
    "adam": AdamTraining,
    "all-reduce-sgd": AllReduceSGD,
    "local-sgd": LocalSGD,
    "open-es": OpenES,
    "spsa": SPSA,
    "dfa": DirectFeedback,
    "random-search": RandomSearch,
}
