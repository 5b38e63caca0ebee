"""Whether scheduler and workers run what the client runs: versions and our code."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from distributed import Client
from distributed.versions import get_versions

from pipeline.cluster_code import (
    Bundle,
    Copy,
    SchedulerCode,
    WorkerCode,
    bundle,
    copies,
    find,
)
from pipeline.cluster_versions import NEEDED, SAME, is_installed, mismatches

logger = logging.getLogger(__name__)

OURS = ("blocks", "pipeline")
SCHEDULER = "the scheduler"


class NoAnswer(RuntimeError):
    """Workers did not answer in time."""


class Admission:
    """Which workers of a running cluster fit this client; brings them what they lack.

    Parameters
    ----------
    timeout_s : float — longest wait for the answers of all workers.
    """

    def __init__(self, client: Client, timeout_s: float) -> None:
        self._client, self._timeout_s = client, timeout_s
        self._mine = get_versions([*SAME, *NEEDED])
        self._code = _known(copies(OURS))
        self._refused: set[str] = set()
        self._fit: set[str] = set()

    def open(self, workers: Mapping[str, str]) -> None:
        """Check the scheduler and all workers, and bring them our packages.

        Raises
        ------
        RuntimeError — if one of them has other versions, or other code; names it.
        """
        answers = self._versions(list(workers))
        answers[SCHEDULER] = self._sync(self._scheduler_versions)
        for address, answer in answers.items():
            problem = self._compare(_who(address, workers), answer)
            if problem:
                raise RuntimeError(problem)
        bundles = tuple(_bundle(name, renew=False) for name in OURS)
        on_scheduler = self._sync(self._scheduler_code)
        if None in on_scheduler.values():
            self._client.register_plugin(SchedulerCode("ndcao-scheduler", bundles))
            on_scheduler = self._sync(self._scheduler_code)
        self._client.register_plugin(WorkerCode("ndcao", bundles, posts=True))
        self._require({SCHEDULER: on_scheduler}, OURS, workers)
        self._require(self._copies(list(workers), OURS), OURS, workers)
        self._fit |= set(answers) - {SCHEDULER}

    def usable(self, workers: Mapping[str, str]) -> dict[str, str]:
        """Return those of ``workers`` that fit; others are left out, with a warning.

        One that has just joined, and is still being set up, is left out until it is.
        """
        new = [a for a in workers if a not in self._fit and a not in self._refused]
        if new:
            with contextlib.suppress(NoAnswer):  # they are asked again
                self._look_at(new, workers)
        return {a: name for a, name in workers.items() if a in self._fit}

    def bring(self, names: Iterable[str]) -> None:
        """Send the user's own top-level packages to workers that cannot import them.

        Raises
        ------
        RuntimeError — if a worker has another copy of one.
        ValueError — if one is too large to be sent.
        """
        for name in names:
            path = find(name)
            if path is None:
                continue  # the import of the model says so
            installed = is_installed(path)
            self._code |= _known(copies((name,)))
            if not installed:
                self._send(name, path)
            named = {address: address for address in self._fit}
            self._require(self._copies(list(named), (name,)), (name,), named)

    def _send(self, name: str, path: Path) -> None:
        try:
            one = bundle(name, path, renew=True)
        except ValueError:
            theirs = self._copies(list(self._fit), (name,))
            if all(found[name] for found in theirs.values()):
                return  # too large to be sent, and no worker lacks it
            raise
        plugin = WorkerCode(f"ndcao-{name}", (one,), posts=False)
        self._client.register_plugin(plugin)

    def _look_at(self, new: list[str], workers: Mapping[str, str]) -> None:
        problems = {
            address: self._compare(_who(address, workers), answer)
            for address, answer in self._versions(new).items()
        }
        same = [address for address, problem in problems.items() if not problem]
        for address, found in self._copies(same, tuple(self._code)).items():
            if all(found.values()):
                who = _who(address, workers)
                problems[address] = self._other_code(who, found, tuple(found))
                if not problems[address]:
                    self._fit.add(address)
        for address, problem in problems.items():
            if problem:
                self._refused.add(address)
                logger.warning("a worker that joined is not used: %s", problem)

    def _compare(self, who: str, answer: Mapping[str, Any]) -> str:
        """What is wrong with the versions of ``who``; harmless things are logged."""
        wrong = []
        for what, theirs, mine, matters in mismatches(self._mine, answer):
            if matters:
                wrong.append(f"{what} {theirs}, not {mine}")
            else:
                logger.warning("%s has %s %s, not %s", who, what, theirs, mine)
        if not wrong:
            return ""
        return (
            f"`cluster` must run what this process runs; {who} has {'; '.join(wrong)}. "
            "Install the same there (constraints.txt names it)."
        )

    def _require(
        self,
        found: Mapping[str, Mapping[str, Copy | None]],
        names: tuple[str, ...],
        workers: Mapping[str, str],
    ) -> None:
        for address, theirs in found.items():
            problem = self._other_code(_who(address, workers), theirs, names)
            if problem:
                raise RuntimeError(problem)

    def _other_code(
        self, who: str, theirs: Mapping[str, Copy | None], names: tuple[str, ...]
    ) -> str:
        for name in names:
            own, got = self._code[name], theirs.get(name)
            if got is None or got.digest != own:
                return (
                    f"`cluster` must run the same `{name}` as this process; {who} has "
                    f"{'none' if got is None else f'code {got.digest}'}, not {own}. "
                    "Install the same there, or remove it, and restart that process."
                )
        return ""

    def _versions(self, addresses: list[str]) -> dict[str, Any]:
        message = {"op": "versions", "packages": [*SAME, *NEEDED]}

        async def ask() -> dict[str, Any]:
            scheduler: Any = self._client.scheduler
            answers = scheduler.broadcast(
                msg=message, workers=addresses, on_error="ignore"
            )
            return dict(await asyncio.wait_for(answers, self._timeout_s))

        return self._sync(ask) if addresses else {}

    def _copies(
        self, addresses: list[str], names: tuple[str, ...]
    ) -> dict[str, dict[str, Copy | None]]:
        """Answers of the workers that are still there."""

        async def ask() -> dict[str, Any]:
            run: Any = self._client.run(
                copies, names, workers=addresses, on_error="ignore"
            )
            return dict(await asyncio.wait_for(run, self._timeout_s))

        return self._sync(ask) if addresses else {}

    async def _scheduler_versions(self) -> dict[str, Any]:
        scheduler: Any = self._client.scheduler
        asked = scheduler.versions(packages=[*SAME, *NEEDED])
        return dict(await asyncio.wait_for(asked, self._timeout_s))

    async def _scheduler_code(self) -> dict[str, Any]:
        run: Any = self._client.run_on_scheduler(copies, OURS)
        return dict(await asyncio.wait_for(run, self._timeout_s))

    def _sync(self, ask: Any) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self._client.sync(ask)
        except TimeoutError as err:
            raise NoAnswer(
                f"`cluster` must answer within {self._timeout_s:g} s; got nothing when "
                "asked for its versions. Look at its dashboard, or raise "
                "cluster.start_timeout_s."
            ) from err
        return found


def _who(address: str, workers: Mapping[str, str]) -> str:
    if address == SCHEDULER:
        return address
    name = workers.get(address, address)
    return f"worker {name}" + ("" if name == address else f" at {address}")


def _known(found: Mapping[str, Copy | None]) -> dict[str, str]:
    return {name: one.digest for name, one in found.items() if one is not None}


def _bundle(name: str, *, renew: bool) -> Bundle:
    path = find(name)
    assert path is not None  # this very module lies in one of them
    return bundle(name, path, renew=renew)
