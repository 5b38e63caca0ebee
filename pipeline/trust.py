"""Whose code a record may run: this user's own, or what is trusted by name.

The settings of a run store or a checkpoint may name code (``package.module:name``), and
whoever made the record may have put a module of that name beside it. It is run only if
asked to, or if this user has trained with the very same: callables, options, and the
content of all files behind them. Trainings keep that in a list outside of results and
working folders, ``trusted.json`` in ``$XDG_STATE_HOME/ndcao`` (``~/.local/state``).
"""

from __future__ import annotations

import datetime
import hashlib
import itertools
import json
import logging
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from pipeline.loaded_code import bytecode_is_of
from pipeline.module_files import closure, is_there
from pipeline.user_code import UserCode, own_names
from pipeline.whole_file import write_whole

if TYPE_CHECKING:
    from pipeline.cluster_config import ClusterConfig
    from pipeline.config import RunConfig

logger = logging.getLogger(__name__)

LOCK_S = 10.0
OF_A_SCHEDULER = {"address": "address", "scheduler-file": "scheduler_file"}
MOST = 2_000  # files of a folder that an option names


def remember(config: RunConfig) -> None:
    """Note the code and the scheduler of settings that this user trains with."""
    path, own = _list_path(), {}
    if own_names(config):
        code = closure(own_names(config), imported=False)
        if code.hashes or code.installed:  # else it is told from no other's
            own[_key(config)] = own_names(config)
    if place := _scheduler(config.cluster):
        own[_place_key(place)] = [place]
    if path is None or own.keys() <= _entries(path).keys():
        return
    today = datetime.date.today().isoformat()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(path.with_suffix(".lock"), timeout=LOCK_S):
            fresh = {key: {"of": of, "since": today} for key, of in own.items()}
            entries = _entries(path) | fresh
            text = json.dumps({"format": 1, "entries": entries}, indent=1)
            write_whole(path, text, mode=0o600)
    except (OSError, RuntimeError, Timeout) as err:
        logger.warning(
            "`%s` must be writable for this user's own code and schedulers to be known "
            "later; got %s. Going on with this run, or evaluating it, may ask for "
            "--trust.",
            path,
            err,
        )


def require(
    config: RunConfig,
    run_id: str,
    *,
    trust: bool,
    recorded: UserCode | None = None,
) -> None:
    """Refuse to run the code of a record that is neither trusted nor the user's own.

    ``recorded`` is the code that it was made with, to say what has changed since.

    Raises
    ------
    ValueError — saying what would be run.
    """
    names = own_names(config)
    if trust or not names:
        return
    path = _list_path()
    if path is not None and _key(config) in _entries(path):
        return
    modules = [name.partition(":")[0] for name in names]
    code = closure(names, imported=False)
    files, then = code.files, recorded.modules if recorded else {}
    for name, module in zip(names, modules, strict=True):
        if not is_there(module):
            raise ValueError(
                f"`run` must find the code that it names; got {run_id}, which would "
                f"call `{name}`, and there is no module `{module}` here. Put the "
                "folder that it lies in on PYTHONPATH, or install its package."
            )
    changed = [n for n, sha in code.hashes.items() if then.get(n, sha) != sha]
    since = f" (`{changed[0]}` has changed since it was made)" if changed else ""
    called = " and ".join(
        f"`{name}` of {files.get(module, 'an installed package')}"
        for name, module in zip(names, modules, strict=True)
    )
    options = f" with options {config.model.options!r}" if config.model.options else ""
    raise ValueError(
        f"`run` must be trusted to run its own code, which you have not trained with; "
        f"{run_id} would call {called}{options}{since}. Pass --trust "
        "(in Python: trust=True) if you know where it comes from."
    )


def require_scheduler(
    config: RunConfig, run_id: str, given: Iterable[str], *, trust: bool
) -> None:
    """Refuse to connect to a scheduler that only a record names.

    A client runs what comes from its scheduler and workers.

    Parameters
    ----------
    given : settings of the cluster that are not the record's.

    Raises
    ------
    ValueError — if this user has never trained there.
    """
    place, path = _scheduler(config.cluster), _list_path()
    if trust or not place or OF_A_SCHEDULER[config.cluster.kind] in given:
        return
    if path is not None and _place_key(place) in _entries(path):
        return
    raise ValueError(
        f"`run` must be trusted to choose a scheduler that you have not trained with, "
        f"as schedulers and workers run code here; {run_id} would connect to {place}. "
        "Pass --address or --scheduler-file yourself, or --trust (in Python: "
        "trust=True) if you know where it comes from."
    )


def _scheduler(cluster: ClusterConfig) -> str:
    """The scheduler that settings lead to; "" if it is started by the run itself."""
    if cluster.kind == "address":
        return str(cluster.address)
    if cluster.kind == "scheduler-file":
        return str(Path(str(cluster.scheduler_file)).expanduser().resolve())
    return ""


def _place_key(place: str) -> str:
    return hashlib.sha256(f"scheduler {place}".encode()).hexdigest()


def _key(config: RunConfig) -> str:
    """Hash of what a record would run: names, options, files, and files they name."""
    code = closure(own_names(config), imported=False)
    parts = {
        "model": [config.model.name, config.model.arguments()],
        "loss": config.loss,
        "modules": code.hashes,
        "installed": sorted(code.installed),
        "named": sorted(_named_files(config.model.options)),
        "compiled": [_compiled(file) for file in code.files.values()],
    }
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _compiled(file: Path) -> str:
    """Return "", or what equals nothing if other code would be run in its place."""
    if file.suffix != ".py" or bytecode_is_of(file, file.read_bytes()):
        return ""
    return secrets.token_hex()


def _named_files(options: Any) -> Iterator[list[str]]:
    """What lies at the paths among options: a factory may run it."""
    if isinstance(options, dict):
        options = list(options.values())
    if isinstance(options, (list, tuple)):
        for option in options:
            yield from _named_files(option)
    elif isinstance(options, str) and options:
        try:
            path = Path(options).expanduser()
            if path.exists():
                yield [options, str(path.resolve()), _content_of(path)]
        except (OSError, ValueError, RuntimeError):
            return


def _content_of(path: Path) -> str:
    """Hash of a file, or of all files in a folder."""
    whole = hashlib.sha256()
    inside = [path] if path.is_file() else itertools.islice(path.rglob("*"), MOST + 1)
    files = sorted(file for file in inside if file.is_file())
    if len(files) > MOST:
        return secrets.token_hex()  # too many to look at: equal to nothing
    for file in files:
        if "__pycache__" not in file.parts:
            with file.open("rb") as opened:
                content = hashlib.file_digest(opened, "sha256").hexdigest()
            name = file.relative_to(path).as_posix()
            whole.update(f"{name}\0{content}\0{_compiled(file)}\0".encode())
    return whole.hexdigest()


def _list_path() -> Path | None:
    """Where the list is; None where there is no home."""
    state = os.environ.get("XDG_STATE_HOME", "")
    try:
        # A relative one would lie in whatever folder a stranger's files are in, too.
        folder = Path(state) if os.path.isabs(state) else Path.home() / ".local/state"
    except RuntimeError:
        return None
    return folder / "ndcao" / "trusted.json"


def _entries(path: Path) -> dict[str, Any]:
    """What the list holds; nothing if others can write to it, or it is damaged."""
    try:
        about = path.stat()
        if hasattr(os, "getuid") and (
            about.st_uid != os.getuid() or about.st_mode & 0o022
        ):
            logger.warning(
                "`%s` must belong to you and be writable by you alone; it is not, and "
                "is not believed. Mend its permissions (chmod 600).",
                path,
            )
            return {}
        found = json.loads(path.read_text(encoding="utf-8"))["entries"]
        return dict(found)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as err:
        logger.warning("`%s` must be a list of trusted code; got %r.", path, err)
        return {}
