"""One line and one exit code for every error a user can meet."""

from __future__ import annotations

import errno
import re

EXIT_FAILED = 1  # the run failed, diverged, or did not match
EXIT_USAGE = 2  # bad input: nothing was started
EXIT_INTERRUPTED = 130  # Ctrl-C
LONGEST = 2000  # characters of a message

_BAD_INPUT = (
    ValueError,
    TypeError,
    FileNotFoundError,
    FileExistsError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
)
_OBJECT = re.compile(r"<([\w.]+) object at 0x[0-9a-f]+>")  # as Dask's messages have
_EXPECTED = (*_BAD_INPUT, RuntimeError, OSError, TimeoutError)


def exit_code(error: BaseException) -> int:
    """2 for input the user can correct, 1 for everything else."""
    return EXIT_USAGE if isinstance(error, _BAD_INPUT) else EXIT_FAILED


def may_pass(error: BaseException) -> bool:
    """Whether a second try may help: a lost worker, disk or API, not bad input."""
    return isinstance(error, Exception) and exit_code(error) == EXIT_FAILED


def describe(error: BaseException) -> str:
    """Return the message of ``error`` on one line, with advice where it brings none.

    What does not print (a file's name may hold a terminal's commands) is escaped, and
    the middle of a very long message is left out.
    """
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in _described(error))
    if len(text) > LONGEST:
        text = f"{text[: LONGEST * 3 // 4]} … {text[-LONGEST // 4 :]}"
    return text


def _described(error: BaseException) -> str:
    if hasattr(error, "errors") and hasattr(error, "error_count"):
        return _validation_message(error)
    text = _OBJECT.sub(r"\1", " ".join(str(error).split()))
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        where = f" while writing {error.filename}" if error.filename else ""
        return f"the disk is full{where}. Free some space and try again."
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.strerror}: {error.filename}."
    if isinstance(error, ModuleNotFoundError):
        return f"{text}. Run `ndcao doctor` to see what the installation lacks."
    if isinstance(error, _EXPECTED) and text:
        return text
    detail = f": {text}" if text else ""
    return (
        f"unexpected {type(error).__name__}{detail}. "
        "Repeat the command with --debug to see where it came from."
    )


def _validation_message(error: BaseException) -> str:
    """Join pydantic's findings: `budget.steps` must …; got …."""
    parts = []
    for finding in error.errors():  # type: ignore[attr-defined]
        place = ".".join(str(part) for part in finding["loc"])
        message = finding["msg"].removeprefix("Value error, ")
        if finding["type"] == "value_error" or not place:
            parts.append(" ".join(message.split()))
        elif finding["type"] == "missing":
            parts.append(f"`{place}` must be given. Set it in the file or by its flag.")
        elif finding["type"] == "extra_forbidden":
            parts.append(f"`{place}` must be a known setting; there is none such.")
        else:
            rule = message[:1].lower() + message[1:]
            parts.append(f"`{place}`: {rule}; got {finding['input']!r}.")
    return " ".join(parts)
