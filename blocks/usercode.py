"""The one door to the user's code: what happens behind it comes back as one sentence.

Factories, networks and losses named ``package.module:name`` are called through here
alone. Whatever they raise, and an attempt to end the process, becomes a
``UserCodeError`` that names the setting, the rule and what was got, in any process.
"""

from __future__ import annotations

import contextlib
import os
import random
import sys
import traceback
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

RUNS = "run without an error"
MEND = "Mend the code."
_LONGEST = 300  # characters of a message that is passed on
# Packages whose lines do not tell where the user's code went wrong.
_NOT_THEIRS = ("torch", "numpy", "blocks", "pipeline", "importlib", "_frozen_importlib")


class UserCodeError(ValueError):
    """The user's code broke a rule; the message is a whole sentence."""


# Lack of memory is the machine's fault, not the code's.
_PASSED_ON = (UserCodeError, MemoryError, torch.OutOfMemoryError)


class _Setting(NamedTuple):
    """A setting of the process that code can change for everything after it."""

    name: str
    get: Callable[[], Any]
    set: Callable[[Any], Any]
    advice: str


def _folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:  # a folder that is gone cannot be gone back to
        return ""


def _enter(folder: str) -> None:
    if folder:
        os.chdir(folder)


def _place_new_tensors(device: torch.device) -> None:
    # None takes torch's hook away that a device, also the CPU, would leave behind.
    torch.set_default_device(None if device.type == "cpu" else device)


# What would silently change the meaning of paths and of tensors: refused.
_REFUSED = (
    _Setting(
        "the working folder",
        _folder,
        _enter,
        "Build paths from `__file__` instead of calling `os.chdir`.",
    ),
    _Setting(
        "torch's default dtype",
        torch.get_default_dtype,
        torch.set_default_dtype,
        "Give the dtype where a tensor is made.",
    ),
    _Setting(
        "torch's default device",
        torch.get_default_device,
        _place_new_tensors,
        "Set `device` of the run instead.",
    ),
)
# What a run decides itself, whatever a script does for its own purposes: put back.
_PUT_BACK: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.get_num_threads, torch.set_num_threads),
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (
        torch.are_deterministic_algorithms_enabled,
        torch.use_deterministic_algorithms,
    ),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
)


class calling:
    """Call the user's code inside; what it raises becomes a ``UserCodeError``.

    What the code changes of the process (working folder, torch's default dtype and
    device) is put back, and refused.

    Parameters
    ----------
    what : str — the setting that holds the name, as "model".
    name : str — the callable's name, as "package.module:factory".
    rule, advice : str — of the sentence, for anything that is raised.

    Raises
    ------
    UserCodeError — for every ``Exception`` and ``SystemExit`` but a ``UserCodeError``
        itself, which passes, as do lack of memory and a ``KeyboardInterrupt``.
    """

    __slots__ = ("_advice", "_before", "_name", "_rule", "_what")

    def __init__(
        self, what: str, name: str, rule: str = RUNS, advice: str = MEND
    ) -> None:
        self._what, self._name = what, name
        self._rule, self._advice = rule, advice

    def __enter__(self) -> None:
        self._before = [setting.get() for setting in _REFUSED]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        changed = self._put_back()
        if isinstance(error, SystemExit):
            raise UserCodeError(
                f"`{self._what}` must not end the process; got {self._name!r} "
                f"(sys.exit({error.code!r}){_place(error)}). Keep what only a script "
                'does behind `if __name__ == "__main__":`.'
            ) from error
        if isinstance(error, _PASSED_ON):
            return
        if isinstance(error, Exception):
            raise UserCodeError(
                f"`{self._what}` must {self._rule}; got {self._name!r} "
                f"({told(error)}{_place(error)}). {self._advice}"
            ) from error
        if error is None and changed:
            setting, value = changed
            raise UserCodeError(
                f"`{self._what}` must leave {setting.name} as it is; got "
                f"{self._name!r}, which changed it to {value}. {setting.advice}"
            )

    def _put_back(self) -> tuple[_Setting, Any] | None:
        """The first setting that was changed, and to what; all are put back."""
        found = None
        for setting, before in zip(_REFUSED, self._before, strict=True):
            now = setting.get()
            if now != before:
                found = found or (setting, now)
                setting.set(before)
        return found


@contextlib.contextmanager
def secluded(seed: int) -> Iterator[None]:
    """Import or build with the user's code inside; the process is as before afterwards.

    The global generators of torch (of the CPU), numpy and Python are a function of the
    seed meanwhile, so that what the code draws from them is one, too. Threads, gradient
    mode, determinism and precision are put back: a run has settings of its own for
    them. The words of our command line are hidden from modules that parse their own.

    Parameters
    ----------
    seed : int — 0 ≤ seed < 2**63.
    """
    before = [get() for get, _ in _PUT_BACK]
    words, sys.argv = sys.argv, sys.argv[:1]
    numpys, pythons = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            # The CPU generator only: `torch.manual_seed` would reseed GPUs too.
            torch.default_generator.manual_seed(seed)
            np.random.seed([seed & 0xFFFFFFFF, seed >> 32])  # noqa: NPY002
            random.seed(seed)
            yield
    finally:
        sys.argv = words
        np.random.set_state(numpys)  # noqa: NPY002
        random.setstate(pythons)
        for (get, put), value in zip(_PUT_BACK, before, strict=True):
            if get() != value:
                put(value)


def check_logits(
    name: str, answer: object, n: int, n_classes: int | None = None
) -> Tensor:
    """Return what a user's network answers on ``n`` images, if it may be used.

    Raises
    ------
    UserCodeError — if it is not one float32 tensor of shape (n, n_classes); ``None``:
        of any number of classes.
    """
    if not isinstance(answer, Tensor):
        raise UserCodeError(
            f"`model` = {name!r} must answer one tensor of logits; got "
            f"{type(answer).__name__}. Turn auxiliary outputs off, or return the "
            "logits alone."
        )
    if n_classes is None and answer.dim() == 2:
        n_classes = answer.shape[1]
    if answer.shape != (n, n_classes):
        raise UserCodeError(
            f"`model` = {name!r} must map {n} images to logits of shape "
            f"({n}, {n_classes or 'n_classes'}); got {tuple(answer.shape)}. Use the "
            "given `n_classes`, and keep samples in the first dimension."
        )
    if answer.dtype != torch.float32:
        raise UserCodeError(
            f"`model` = {name!r} must answer float32 logits; got {answer.dtype}. "
            "Compute in float32, or end with `.float()`."
        )
    return answer


def told(error: BaseException) -> str:
    """Return an error's type and message on one line of bounded length."""
    text = " ".join(str(error).split())
    text = "".join(c if c.isprintable() else "?" for c in text)
    if len(text) > _LONGEST:
        text = text[:_LONGEST] + "…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _place(error: BaseException) -> str:
    """Return where in the user's code an error arose: " at net.py, line 12"."""
    place = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if package not in _NOT_THEIRS:
            place = f" at {os.path.basename(frame.f_code.co_filename)}, line {line}"
    return place
