"""A script without the main guard is told so, in one sentence, once."""

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.main_guard import check_guarded

ROOT = Path(__file__).parents[2]
CALL = "from pipeline.main_guard import check_guarded\n"
UNGUARDED = (
    "check_guarded()\nprint('started')\n",
    "log = __name__\ndef main():\n    check_guarded()\n    print('started')\nmain()\n",
    "if True:\n    check_guarded()\n    print('started')\n",
)
GUARDED = (
    "if __name__ == '__main__':\n    check_guarded()\n    print('started')\n",
    "__name__ == '__main__' and (check_guarded(), print('started'))\n",
    "import sys\nif __name__ != '__main__':\n    sys.exit()\n"
    "check_guarded()\nprint('started')\n",
    "import multiprocessing as m\nif m.parent_process() is None:\n"
    "    check_guarded()\n    print('started')\n",
)


def ran(arguments):
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
    )


@pytest.mark.parametrize("script", UNGUARDED)
def test_check_guarded__an_unguarded_script_is_told_the_readmes_sentence(
    script, tmp_path
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(CALL + script)
    done = ran([str(file)])
    assert done.returncode == 1
    assert "started" not in done.stdout
    *_, last = done.stderr.strip().splitlines()
    assert f'`{file}` must have its call under `if __name__ == "__main__":`' in last
    readme = (ROOT / "README.md").read_text()
    for words in (
        'under `if __name__ == "__main__":`',
        "are new processes that import",
    ):
        assert words in last
        assert words in readme


@pytest.mark.parametrize("script", GUARDED)
def test_check_guarded__a_guarded_script_goes_on(script, tmp_path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(CALL + script)
    assert ran([str(file)]).stdout == "started\n"


def test_check_guarded__what_no_worker_imports_needs_no_guard(tmp_path) -> None:
    assert ran(["-c", CALL + "check_guarded()\nprint('started')"]).stdout == "started\n"
    (tmp_path / "__main__.py").write_text(CALL + UNGUARDED[0])
    assert ran([str(tmp_path)]).stdout == "started\n"
    check_guarded()


def test_check_guarded__a_worker_that_imports_the_script_is_told_too(tmp_path) -> None:
    """However the script was started: here its call is in a thread."""
    file = tmp_path / "mine.py"
    file.write_text(
        "import multiprocessing, threading\n" + CALL + "def go():\n"
        "    check_guarded()\n"
        "    process = multiprocessing.get_context('spawn').Process(target=print)\n"
        "    process.start()\n"
        "    process.join(50)\n"
        "thread = threading.Thread(target=go)\n"
        "if multiprocessing.current_process().name == 'MainProcess':\n"
        "    thread.start()\n"
        "    thread.join(50)\n"
        "else:\n"
        "    check_guarded()\n"
    )
    assert "must have its call under" in ran([str(file)]).stderr
