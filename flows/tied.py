"""Runs a Python module as ``python -m`` does, and ends it once its parent has gone.

The parent holds the other end of this process's standard input and never writes to it
(:func:`command`). When the parent has died, of whatever cause, the kernel closes that
end; this process and all below it then end as :func:`~flows.supervisor.end_tree` ends
them. A parent may let later processes hold the end as well: then they end first.
"""

from __future__ import annotations

import os
import runpy
import sys
import threading

from flows.supervisor import end_tree

CHILDREN_FIRST = "--children-first"


def command(module: str, *words: str, children_first: bool = False) -> list[str]:
    """Return the command that runs ``module`` tied to whoever starts it.

    Start it with ``stdin=subprocess.PIPE``, and keep that open.
    """
    flags = [CHILDREN_FIRST] if children_first else []
    return [sys.executable, "-m", "flows.tied", *flags, module, *words]


def main() -> None:
    """Watch standard input in a thread, and run the module that is named."""
    words = sys.argv[1:]
    children_first = words[0] == CHILDREN_FIRST
    module, *words = words[1:] if children_first else words
    watched = os.dup(0)  # not inherited, as file descriptors of Python are not
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    threading.Thread(
        target=_end_with_parent, args=(watched, children_first), daemon=True
    ).start()
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _end_with_parent(watched: int, children_first: bool) -> None:
    while os.read(watched, 1):  # blocks until nobody holds the other end
        pass
    end_tree(os.getpid(), children_first)


if __name__ == "__main__":
    main()
