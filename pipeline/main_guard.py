"""Whether the processes of a local cluster would run the user's whole script again.

They are started anew and import the script for its functions. Without a guard it would
start a cluster in each of them, which Python refuses with a traceback a process.
"""

from __future__ import annotations

import ast
import multiprocessing
import sys
from multiprocessing.spawn import get_preparation_data
from pathlib import Path
from types import FrameType

__all__ = ["check_guarded", "check_imported"]


def check_guarded() -> None:
    """Refuse to start processes from a script that has no main guard.

    Raises
    ------
    ValueError — saying how the script must look.
    """
    check_imported()
    if _unguarded(sys._getframe()):
        raise _error()


def check_imported() -> None:
    """Refuse to go on in a process that is importing the script of its parent.

    Raises
    ------
    ValueError — as :func:`check_guarded`.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise _error()


def _error() -> ValueError:
    script = getattr(sys.modules["__main__"], "__file__", None) or "the script"
    return ValueError(
        f'`{script}` must have its call under `if __name__ == "__main__":`, because '
        "the workers of a local cluster are new processes that import it; got none. "
        "Put it there, or set cluster.kind=in-process to compute without a cluster."
    )


def _unguarded(frame: FrameType | None) -> bool:
    """Whether we are called by a line of the script that its import runs too."""
    preparation = get_preparation_data("worker")
    if not {"init_main_from_path", "init_main_from_name"} & set(preparation):
        return False  # a prompt, a notebook, `python -c`: nothing is imported
    if str(preparation.get("init_main_from_name")).endswith("__main__"):
        return False  # `python -m package`: not imported either
    main = vars(sys.modules["__main__"])
    while frame is not None and not (
        frame.f_globals is main and frame.f_code.co_name == "<module>"
    ):
        frame = frame.f_back
    if frame is None:
        return False
    try:
        text = Path(frame.f_code.co_filename).read_text(encoding="utf-8")
        statements = ast.parse(text).body
    except (OSError, ValueError, SyntaxError):
        return False
    so_far = [s for s in statements if s.lineno <= frame.f_lineno]
    return not any(_asks(node) for one in so_far for node in ast.walk(one))


def _asks(node: ast.AST) -> bool:
    """Whether a part of a script asks in which process it runs."""
    if isinstance(node, ast.Compare):
        inside = [n.id for n in ast.walk(node) if isinstance(n, ast.Name)]
        return "__name__" in inside
    name = getattr(node, "attr", getattr(node, "id", None))
    return name in ("parent_process", "current_process")
