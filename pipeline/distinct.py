"""Which runs are copies of one, and which data only share a name."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TypeVar

from pipeline.run_arrays import RunArrays

__all__ = ["code_labels", "data_labels", "distinct_runs", "same_seeds"]

Item = TypeVar("Item")
Key = TypeVar("Key")
_SHORT, _WHOLE = 8, 64  # digits of a hash


def distinct_runs(runs: Sequence[RunArrays]) -> tuple[list[RunArrays], list[str]]:
    """Return the runs without copies, and a sentence for each run that has some.

    Stores with the same run id and the same final parameters are one run, however often
    it was copied or trained.
    """
    once = _grouped(runs, [(_of(r, "run_id"), _of(r, "params_sha256")) for r in runs])
    kept = [same[0] for same in once.values()]
    sentences = [
        f"{_of(same[0], 'run_id')} is counted once, although it is in {len(same)} "
        f"stores: {', '.join(str(run.stored.path) for run in same)}."
        for same in once.values()
        if len(same) > 1
    ]
    return kept, sentences


def same_seeds(run_ids: Sequence[str], keys: Sequence[Hashable]) -> list[str]:
    """Return a sentence for runs that share seed and settings, and are not one run.

    An asynchronous run that was trained again, or runs of other code: they are samples
    of their own, but not independent ones, and no two of them can be paired.

    Parameters
    ----------
    keys : seed and settings of each run.
    """
    return [
        f"{' and '.join(dict.fromkeys(found))} ({len(found)} runs) share seed and "
        "settings and ended differently: each is counted, but they are not independent."
        for found in _grouped(run_ids, keys).values()
        if len(found) > 1
    ]


def data_labels(runs: Sequence[RunArrays]) -> tuple[list[str], list[str]]:
    """Return what each run's data are called, and a sentence on every name that misled.

    Equal labels are equal content: the same data under two names have the first one's,
    and different data of one name have the start of their hash behind it.
    """
    # Without a hash there is but the name to go by.
    names = [_of(run, "dataset") for run in runs]
    hashes = [_of(run, "data_sha256") for run in runs]
    keys = [(h, "" if h else name) for h, name in zip(hashes, names, strict=True)]
    called = {key: list(dict.fromkeys(n)) for key, n in _grouped(names, keys).items()}
    first = {key: of[0] for key, of in called.items()}
    shared = {name for name, n in Counter(first.values()).items() if n > 1}

    def labelled(digits: int) -> dict[tuple[str, str], str]:
        return {
            key: f"{name} ({key[0][:digits] or 'no hash'})" if name in shared else name
            for key, name in first.items()
        }

    label = labelled(_SHORT)
    if len({*label.values()}) < len(label):
        label = labelled(_WHOLE)
    n_runs = Counter(keys)
    sentences = []
    for name in sorted(shared):
        own = [key for key in first if first[key] == name]
        listed = ", ".join(f"{label[key]} of {_runs(n_runs[key])}" for key in own)
        sentences.append(
            f"{name} is the name of {len(own)} different data sets, which are kept "
            f"apart: {listed}."
        )
    sentences += [
        f"{' and '.join(of)} are the same data, shown as {label[key]}."
        for key, of in called.items()
        if len(of) > 1
    ]
    return [label[key] for key in keys], sentences


def code_labels(runs: Sequence[RunArrays]) -> list[str]:
    """Return the start of the hash of each run's own code; "" where names say enough.

    They do unless a model and a loss of the same names have different code.
    """
    texts = [json.loads(_of(run, "user_code") or "{}") for run in runs]
    digests = [str(text.get("digest", "")) for text in texts]
    configs = [json.loads(_of(run, "config") or "{}") for run in runs]
    names = [json.dumps([c.get("model"), c.get("loss")]) for c in configs]
    several = {n for n, own in _grouped(digests, names).items() if len({*own}) > 1}
    return [
        (digest[:_SHORT] or "unknown") if name in several else ""
        for digest, name in zip(digests, names, strict=True)
    ]


def _of(run: RunArrays, name: str) -> str:
    return str(run.attrs.get(name, ""))


def _runs(n: int) -> str:
    return f"{n} run{'' if n == 1 else 's'}"


def _grouped(items: Sequence[Item], keys: Sequence[Key]) -> dict[Key, list[Item]]:
    groups: dict[Key, list[Item]] = {}
    for item, key in zip(items, keys, strict=True):
        groups.setdefault(key, []).append(item)
    return groups
