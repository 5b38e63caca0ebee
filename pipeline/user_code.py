"""The user's own code as part of what a run is: its digest, and what changed since.

A run whose model or loss is ``package.module:name`` is what that code makes of it. The
digest covers every module outside Python's and pip's folders that the code consists of
(``module_files``), as it is imported, and the versions of the distributions that it
imports. Versions that every run records (torch, numpy) are not in it.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blocks.dotted import is_dotted, load_callable
from pipeline.loaded_code import this_process
from pipeline.module_files import OURS, RECORDED, closure

if TYPE_CHECKING:
    from torch import nn

    from pipeline.config import RunConfig


logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class UserCode:
    """What the user's code consisted of; empty for runs that are built in."""

    modules: dict[str, str] = field(default_factory=dict)  # sha256 of each source
    installed: dict[str, str] = field(default_factory=dict)  # versions

    def __bool__(self) -> bool:
        return bool(self.modules or self.installed)

    @property
    def digest(self) -> str:
        """Hash of all; "" if there is nothing."""
        if not self:
            return ""
        return hashlib.sha256(self._text().encode()).hexdigest()

    def _text(self) -> str:
        parts = {"modules": self.modules, "installed": self.installed}
        return json.dumps(parts, sort_keys=True)

    def to_json(self) -> str:
        """Return it as a record holds it."""
        return json.dumps({"digest": self.digest, **json.loads(self._text())})

    @classmethod
    def from_json(cls, text: str) -> UserCode:
        """Read what ``to_json`` wrote.

        Raises
        ------
        ValueError — if it is something else.
        """
        try:
            parts = json.loads(text)
            code = cls(dict(parts["modules"]), dict(parts["installed"]))
            fits = parts["digest"] == code.digest
        except (LookupError, TypeError, ValueError):
            fits = False
        if not fits:
            raise ValueError(
                f"`user_code` of a run must hold what it is a digest of; got "
                f"{text[:80]!r}. Restore the run from a copy."
            )
        return code

    def changes(self, now: UserCode) -> str:
        """Name what another code differs in, as "`net` has changed"; "" if nothing."""
        own = [f"`{name}` {how}" for name, how in _apart(self.modules, now.modules)]
        old, new = self.installed, now.installed
        others = [
            f"{name} is {new.get(name, 'not imported')} and was "
            f"{old.get(name, 'not imported')}"
            for name, _ in _apart(old, new)
        ]
        return ", ".join(own + others)


NO_CODE = UserCode()


def _apart(old: dict[str, str], new: dict[str, str]) -> Iterator[tuple[str, str]]:
    for name in sorted({*old, *new}):
        if name not in new:
            yield name, "is not imported any more"
        elif name not in old:
            yield name, "is new"
        elif old[name] != new[name]:
            yield name, "has changed"


def own_names(config: RunConfig) -> list[str]:
    """The settings' ``package.module:name`` of the user's own model and loss."""
    return [name for name in (config.model.name, config.loss) if is_dotted(name)]


def code_of(config: RunConfig, network: nn.Module | None) -> UserCode:
    """Return the code of a run's own model and loss, as this process has imported it.

    Parameters
    ----------
    network : the model that was built; its layers' classes may come from files that
        no module of the settings imports.

    Raises
    ------
    ValueError — if a file was changed since it was imported.
    """
    names = own_names(config)
    if not names:
        return NO_CODE
    if is_dotted(config.loss):
        load_callable(config.loss, "loss")
    parts = set(names)
    files: dict[str, Path] = {}
    if network is not None and is_dotted(config.model.name):
        for kind in {type(layer) for layer in network.modules()}:
            if kind.__module__ in sys.modules:
                parts.add(f"{kind.__module__}:{kind.__qualname__}")
            else:
                files |= _file_of(kind)
    found = closure(parts, imported=True, files=files)
    given = {name.partition(":")[0].partition(".")[0] for name in names}
    kept = {d for d in found.installed if d not in RECORDED or d in given}
    return UserCode(dict(sorted(found.hashes.items())), _versions(kept))


def _file_of(kind: type) -> dict[str, Path]:
    """The file of a class whose module was not kept, as torch.hub leaves it."""
    for value in vars(kind).values():
        own = getattr(value, "__module__", "") == kind.__module__
        if isinstance(value, types.FunctionType) and own:
            path = Path(value.__code__.co_filename)
            return {kind.__module__: path} if path.is_file() else {}
    return {}


def _versions(distributions: set[str]) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in sorted(distributions)}


def packages_of(config: RunConfig, code: UserCode) -> tuple[str, ...]:
    """Top-level packages and modules that workers need for the user's own code."""
    named = [name.partition(":")[0] for name in own_names(config)]
    tops = {name.partition(".")[0] for name in (*named, *code.modules)}
    return tuple(sorted(tops - {*OURS, "__main__"}))


def check_here(told: UserCode, config: RunConfig, network: nn.Module) -> None:
    """Refuse to compute a run with other code than the process that began it has.

    Raises
    ------
    ValueError — naming this process and the module that differs.
    """
    changes = told.changes(code_of(config, network))
    if changes:
        raise ValueError(
            f"`model` and `loss` must be the same code in every process of a run; in "
            f"{this_process()} {changes}. Give all workers the same files, and start "
            "those anew that imported older ones."
        )


def check_unchanged(saved: dict[str, Any], now: UserCode, run_id: str) -> None:
    """Refuse to go on from a checkpoint with other code than it was begun with.

    Raises
    ------
    ValueError — naming the module that changed.
    """
    recorded = recorded_code(saved)
    changes = "" if recorded is None else recorded.changes(now)
    if changes:
        raise ValueError(
            f"`checkpoint` must go on with the code that {run_id} was begun with; "
            f"{changes}. Put the code back as it was, or train anew: that is another "
            "run."
        )


def without_code(saved: dict[str, Any], config: RunConfig, run_id: str) -> list[str]:
    """Say, and log, that a checkpoint does not tell which code it was begun with."""
    if not own_names(config) or recorded_code(saved) is not None:
        return []
    text = (
        f"`checkpoint` of {run_id} is of an older version, which did not note the code "
        "of the user's own model or loss: whether it has changed since cannot be told."
    )
    logger.warning("%s", text)
    return [text]


def recorded_code(attrs: dict[str, Any]) -> UserCode | None:
    """The code that a run's attributes or a checkpoint record; None: they do not."""
    text = attrs.get("user_code")
    return None if text is None else UserCode.from_json(text)
