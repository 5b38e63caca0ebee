"""A process that damages, reads and says what came of it, one case after another.

It takes one line of JSON a case, and answers with one line before each reader starts
and one after it: when the process dies, its parent knows of what.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import resource
import sys
import warnings
from pathlib import Path
from typing import Any, TextIO

from tests.faults.damage import Damage, every
from tests.faults.outcomes import LIMIT_S, digest, judged
from tests.faults.readers import CHANGING, READERS, Place, place_copy, readers_of
from tests.faults.samples import Target

MORE_BYTES = 3 * 2**30  # of address space, for what is read


def damages(target: Target) -> list[Damage]:
    """Every damage of a target, in the same order in every process."""
    return list(every(Path(target.path), Path(target.other), target.effort))


class Bench:
    """One target: its damages, and what its readers answer without any."""

    def __init__(self, target: Target, run: Path, folder: Path) -> None:
        self._target, self._folder = target, folder
        self._run = Path(target.path) if target.kind == "run" else run
        self._damages = damages(target)
        self._right = {
            name: digest(read(self._copy()))
            for name, read in READERS[target.kind].items()
        }

    def _copy(self) -> Place:
        target = self._target
        paths = Path(target.path), Path(target.data), self._run
        return place_copy(target.kind, *paths, self._folder)

    def damage(self, number: int) -> Damage:
        """Damage a fresh copy, which readers then find."""
        damage = self._damages[number]
        self._place = self._copy()
        folder = self._place.damaged
        damage.apply(folder.parent if self._target.kind == "checkpoint" else folder)
        return damage

    def judge(self, reader: str) -> tuple[str, str]:
        """Read; return the outcome and what was said."""
        read, place = READERS[self._target.kind][reader], self._place
        return judged(lambda: read(place), self._right[reader])


def main() -> None:
    """Work until there are no more lines."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    logging.disable()
    warnings.simplefilter("ignore")
    settings = json.loads(sys.stdin.readline())
    folder = Path(settings["folder"])
    targets = {name: Target(**t) for name, t in settings["targets"].items()}
    runs = [Path(t.path) for t in targets.values() if t.kind == "run"]
    benches = {
        name: Bench(target, runs[0], folder / "copy")
        for name, target in targets.items()
    }
    used = int(Path("/proc/self/statm").read_text().split()[0]) * 4096
    resource.setrlimit(resource.RLIMIT_AS, (used + MORE_BYTES,) * 2)
    _say(answers, "ready")
    os.dup2(silence, 2)  # until here a traceback is a fault of ours
    for line in sys.stdin:
        name, number = json.loads(line)
        bench = benches[name]
        damage = bench.damage(number)
        for reader in readers_of(targets[name].kind, number):
            _say(answers, [name, damage.kind, damage.where, reader])
            faulthandler.dump_traceback_later(2 * LIMIT_S, exit=True)
            _say(answers, bench.judge(reader))
            faulthandler.cancel_dump_traceback_later()
            if reader in CHANGING:
                bench.damage(number)
        _say(answers, None)


def _say(answers: TextIO, what: Any) -> None:
    answers.write(json.dumps(what) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
