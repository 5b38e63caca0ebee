"""Code of a record runs only if it is this user's own, or if it is asked for."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import shutil
import sys
import threading
from pathlib import Path

import pytest

from pipeline import pack
from pipeline.config import load_config
from pipeline.replay import replay
from pipeline.run_store import open_run, write_run
from pipeline.runs import evaluate_run, export_run, load_model, load_standardise
from pipeline.train import resume, train
from pipeline.trust import remember, require, require_scheduler

NET = """
from pathlib import Path
from torch import nn

RAN = Path(__file__).with_name("ran")
RAN.touch()


def make(image_shape, n_classes, width=4):
    size = image_shape[0] * image_shape[1] * image_shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(size, n_classes))
"""


@pytest.fixture
def state(tmp_path, monkeypatch):
    """A user who has trained nothing yet."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path / "state" / "ndcao" / "trusted.json"
    forget()


def forget() -> None:
    """Let go of what was imported, as a new process has."""
    from pipeline.context import drop_contexts

    sys.modules.pop("strange_net", None)
    importlib.invalidate_caches()
    drop_contexts()


@pytest.fixture
def shipped(state, tiny, tmp_path, monkeypatch):
    """A stranger's run store and checkpoint, and the module that they name."""
    code = tmp_path / "shipped"
    code.mkdir()
    (code / "strange_net.py").write_text(NET)
    monkeypatch.syspath_prepend(code)
    model = {"name": "strange_net:make", "options": {"width": 3}}
    config = tiny(model=model, blocks="all", algorithm="sgd", budget={"steps": 2})
    store = train(config, results=tmp_path / "r").attrs["store"]
    stop = threading.Event()
    stop.set()
    changed = tiny(**json.loads(config.model_dump_json()) | {"seed": 1})
    checkpoint = train(changed, results=tmp_path / "r", stop=stop).attrs["store"]
    state.unlink()  # all that was the stranger's training
    (code / "ran").unlink()
    forget()
    return code, Path(store), Path(checkpoint)


COMMANDS = {
    "evaluate": lambda run, **kw: evaluate_run(run[1], **kw),
    "replay": lambda run, **kw: replay(run[1], **kw),
    "load_model": lambda run, **kw: load_model(run[1], **kw),
    "of a dataset": lambda run, **kw: load_model(open_run(run[1]), **kw),
    "resume": lambda run, **kw: resume(run[2], **kw),
    "export": lambda run, **kw: export_run(run[1], run[0] / "x.safetensors", **kw),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_strangers_record__runs_no_code_and_says_what_it_would_run(
    command, shipped
) -> None:
    with pytest.raises(ValueError, match=r"^`run` must be trusted") as caught:
        COMMANDS[command](shipped)
    text = str(caught.value)
    assert f"`strange_net:make` of {shipped[0] / 'strange_net.py'}" in text
    assert "with options {'width': 3}" in text
    assert "Pass --trust" in text
    assert not (shipped[0] / "ran").exists()
    assert "strange_net" not in sys.modules
    COMMANDS[command](shipped, trust=True)
    assert (shipped[0] / "ran").exists()


def test_a_run_of_this_users_own_code__needs_no_flag(shipped) -> None:
    config = load_config(None, [], json.loads(open_run(shipped[1]).attrs["config"]))
    remember(config)
    for command in COMMANDS.values():
        command(shipped)


def test_trust_in_one_command__is_not_kept(shipped, state) -> None:
    evaluate_run(shipped[1], trust=True)
    forget()
    assert not state.exists()
    with pytest.raises(ValueError, match="must be trusted"):
        evaluate_run(shipped[1])


@pytest.mark.parametrize("change", ["code", "helper", "options", "callable", "loss"])
def test_a_record_that_differs_from_what_was_trained__is_refused(
    change, shipped, tmp_path, monkeypatch
) -> None:
    ds = open_run(shipped[1])
    config = json.loads(ds.attrs["config"])
    remember(load_config(None, [], config))
    require(load_config(None, [], config), "run", trust=False)
    if change in ("code", "helper"):
        theirs = tmp_path / "theirs"
        theirs.mkdir()
        monkeypatch.syspath_prepend(theirs)
        extra = "import strange_helper\n" if change == "helper" else "X = 1\n"
        (theirs / "strange_net.py").write_text(extra + NET)
        (theirs / "strange_helper.py").write_text("")
    elif change == "options":
        config["model"]["options"] = {"width": 99}
    elif change == "callable":
        config["model"]["name"] = "strange_net:other"
    else:
        config["loss"] = "os:system"
    ds.attrs["config"] = json.dumps(config)
    store = write_run(ds, tmp_path / "copy.zarr")
    with pytest.raises(ValueError, match="must be trusted"):
        evaluate_run(store)


def test_a_folder_that_an_option_names__counts_with_all_that_is_in_it(
    state, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    hub = tmp_path / "hub"
    hub.mkdir()
    (hub / "hubconf.py").write_text("def net(): ...")
    options = {"repo_or_dir": "hub", "source": "local", "model": "net"}
    model = {"name": "torch.hub:load", "options": options}
    config = load_config(None, [], {"model": model})
    remember(config)
    require(config, "run", trust=False)
    (tmp_path / "elsewhere").mkdir()
    shutil.copytree(hub, tmp_path / "elsewhere" / "hub")
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"call `torch\.hub:load` of an installed"):
        require(config, "run", trust=False)
    monkeypatch.chdir(tmp_path)
    require(config, "run", trust=False)
    (hub / "weights.pt").write_bytes(b"evil")
    with pytest.raises(ValueError, match="repo_or_dir"):
        require(config, "run", trust=False)


def test_compiled_code_that_is_not_of_its_source__is_not_the_users_own(
    shipped, tmp_path
) -> None:
    config = load_config(None, [], json.loads(open_run(shipped[1]).attrs["config"]))
    remember(config)
    source = shipped[0] / "strange_net.py"
    cached = Path(importlib.util.cache_from_source(str(source)))
    cached.parent.mkdir()
    evil = importlib._bootstrap_external._code_to_timestamp_pyc(
        compile("print('evil')", str(source), "exec"),
        int(source.stat().st_mtime),
        source.stat().st_size,
    )
    cached.write_bytes(evil)
    with pytest.raises(ValueError, match="must be trusted"):
        require(config, "run", trust=False)


def test_the_list__is_the_users_alone_and_lies_outside_home_and_results(
    shipped, state, monkeypatch, tmp_path
) -> None:
    config = load_config(None, [], json.loads(open_run(shipped[1]).attrs["config"]))
    monkeypatch.setenv("NDCAO_HOME", str(tmp_path / "elsewhere"))
    remember(config)
    assert state.stat().st_mode & 0o777 == 0o600
    assert state.parent.stat().st_mode & 0o777 == 0o700
    assert sorted(p.name for p in state.parent.iterdir()) == [
        "trusted.json",
        "trusted.lock",
    ]
    state.chmod(0o666)  # anybody could have added to it
    with pytest.raises(ValueError, match="must be trusted"):
        require(config, "run", trust=False)


def test_the_list__is_not_sought_in_the_working_folder(monkeypatch, tmp_path) -> None:
    from pipeline.trust import _list_path

    monkeypatch.setenv("XDG_STATE_HOME", "state")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert _list_path() == tmp_path / ".local/state/ndcao/trusted.json"


@pytest.mark.parametrize("content", ["", "[1]", '{"entries": 3}', '{"entries": {}}'])
def test_a_damaged_list__trusts_nothing_and_is_written_anew(
    content, shipped, state
) -> None:
    config = load_config(None, [], json.loads(open_run(shipped[1]).attrs["config"]))
    state.parent.mkdir(parents=True, exist_ok=True)
    state.write_text(content)
    state.chmod(0o600)
    with pytest.raises(ValueError, match="must be trusted"):
        require(config, "run", trust=False)
    remember(config)
    require(config, "run", trust=False)


def test_training__goes_on_where_no_list_can_be_kept(
    shipped, monkeypatch, tmp_path, caplog
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    config = load_config(None, [], json.loads(open_run(shipped[1]).attrs["config"]))
    assert train(config, results=tmp_path / "new").attrs["status"] == "complete"
    assert "must be writable for this user's own code" in caplog.text


def test_built_in_runs_and_standardisation__need_no_trust(
    state, sync_run, shipped
) -> None:
    assert evaluate_run(sync_run[0].attrs["store"])["warnings"] == []
    assert not state.exists() or os.stat(state).st_size
    load_standardise(shipped[1])


def test_code_that_is_not_here__is_said_to_be_missing(shipped) -> None:
    (shipped[0] / "strange_net.py").unlink()
    importlib.invalidate_caches()
    with pytest.raises(ValueError, match=r"no module `strange_net` here.*PYTHONPATH"):
        evaluate_run(shipped[1])


def checkpoint_with(cluster, tiny, folder: Path) -> Path:
    """A checkpoint of a built-in network whose maker chose where it goes on."""
    stop = threading.Event()
    stop.set()
    stopped = train(tiny(budget={"steps": 2}), results=folder, stop=stop)
    path = Path(stopped.attrs["store"])
    saved = pack.load(path)
    config = json.loads(saved["config"]) | {"cluster": cluster}
    pack.save(path, saved | {"config": json.dumps(config)})
    return path


def test_commands_in_a_checkpoints_cluster__are_not_run(state, tiny, tmp_path) -> None:
    options = {"job_script_prologue": ["touch ran"]}
    cluster = {"kind": "jobqueue", "system": "slurm", "options": options}
    path = checkpoint_with(cluster, tiny, tmp_path)
    with pytest.raises(ValueError, match=r"`cluster.options` must be given again"):
        resume(path, trust=True)


def test_a_checkpoint_whose_cluster_is_none__is_refused(state, tiny, tmp_path) -> None:
    with pytest.raises(ValueError, match="`checkpoint` must hold a run's settings"):
        resume(checkpoint_with([1], tiny, tmp_path))


@pytest.mark.parametrize(
    "cluster",
    [
        {"kind": "address", "address": "tcp://192.0.2.1:8786"},
        {"kind": "scheduler-file", "scheduler_file": "theirs.json"},
    ],
)
def test_a_scheduler_that_only_a_checkpoint_names__is_not_connected_to(
    cluster, state, tiny, tmp_path
) -> None:
    path = checkpoint_with(cluster, tiny, tmp_path)
    with pytest.raises(ValueError, match=r"must be trusted to choose a scheduler"):
        resume(path)
    assert not state.exists()
    config, given = tiny(cluster=cluster), {"kind": cluster["kind"], **cluster}
    require_scheduler(config, "run", given, trust=False)
    require_scheduler(config, "run", {}, trust=True)
    with pytest.raises(ValueError, match=r"would connect to .*(192\.0\.2\.1|theirs)"):
        require_scheduler(config, "run", {"kind"}, trust=False)
    remember(config)  # as training there does
    require_scheduler(config, "run", {}, trust=False)
    assert resume(path, cluster={"kind": "in-process"}).attrs["status"] == "complete"
