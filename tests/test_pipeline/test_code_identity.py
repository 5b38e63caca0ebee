"""The user's own code is part of what a run is: as loaded, with all that it imports."""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import os
import sys
import threading
import types
import zipfile
from dataclasses import replace
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, SourceFileLoader

import pytest

from pipeline import pack
from pipeline.config import load_config
from pipeline.context import Context, drop_contexts
from pipeline.replay import replay
from pipeline.run_store import open_run, write_run
from pipeline.runs import evaluate_run, load_model, summary
from pipeline.train import resume, train
from pipeline.user_code import UserCode, code_of

NET = """
import torch
from torch import nn
from own_layers import activation


def make(image_shape, n_classes, width=5):
    size = image_shape[0] * image_shape[1] * image_shape[2]
    return nn.Sequential(
        nn.Flatten(), nn.Linear(size, width), activation(), nn.Linear(width, n_classes)
    )
"""
LAYERS = """
from torch import nn


def activation():
    return nn.Tanh()
"""
LOSS = """
import torch

SCALE = 1.0


def loss(logits, targets):
    rows = torch.arange(len(targets))
    return SCALE * -torch.log_softmax(logits, 1)[rows, targets]
"""


class Folder:
    """A folder of the user's, on the path; what was imported from it can be let go."""

    def __init__(self, path) -> None:
        self.path = path

    def write(self, **modules: str) -> None:
        """Write modules, and start anew as far as they are concerned."""
        for name, text in modules.items():
            (self.path / f"{name}.py").write_text(text)
        self.anew()

    def anew(self) -> None:
        for name in [n for n in sys.modules if n.startswith("own_")]:
            del sys.modules[name]
        importlib.invalidate_caches()
        drop_contexts()


class PassingLoader(SourceFileLoader):
    """A tool's loader that changes nothing, as beartype's, which Prefect brings."""


class AddingLoader(SourceFileLoader):
    """A tool's loader that puts something into every function."""

    def source_to_code(self, data, path, *, _optimize=-1):
        tree = ast.parse(data)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                node.body.insert(0, ast.parse("'added'.upper()").body[0])
        return compile(ast.fix_missing_locations(tree), path, "exec")


@pytest.fixture
def loaded_by(monkeypatch):
    """Whatever is imported from new folders goes through this loader first."""

    def install(loader) -> None:
        first = FileFinder.path_hook((loader, SOURCE_SUFFIXES))
        monkeypatch.setattr(sys, "path_hooks", [first, *sys.path_hooks])

    return install


@pytest.fixture(params=[SourceFileLoader, PassingLoader])
def any_loader(request, loaded_by) -> None:
    loaded_by(request.param)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "code").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "code")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    found = Folder(tmp_path / "code")
    found.write(own_net=NET, own_layers=LAYERS, own_loss=LOSS)
    yield found
    found.anew()


@pytest.fixture
def own(tiny):
    """A configuration with the user's own model and loss."""

    def make(**flags):
        base = {
            "model": {"name": "own_net:make"},
            "loss": "own_loss:loss",
            "blocks": "all",
            "algorithm": "adam",
            "budget": {"steps": 3},
        }
        return tiny(**base | flags)

    return make


def digest(config=None, network=None) -> UserCode:
    flags = {"model": {"name": "own_net:make"}, "loss": "own_loss:loss"}
    config = config or load_config(None, [], flags)
    for name in ("own_net", "own_loss"):
        importlib.import_module(name)
    return code_of(config, network)


def stopped(config, results):
    event = threading.Event()
    event.set()
    ds = train(config, results=results, stop=event)
    assert ds.attrs["status"] == "interrupted"
    return ds


# -- what the digest covers ------------------------------------------------------------


def test_code_of__covers_the_modules_and_what_they_import_and_nothing_else(
    folder,
) -> None:
    found = digest()
    assert list(found.modules) == ["own_layers", "own_loss", "own_net"]
    assert found.installed == {}  # torch's version is in every record
    assert UserCode.from_json(found.to_json()) == found


@pytest.mark.parametrize(
    ("how", "helper"),
    [
        ("import own_deep.inner as x", "own_deep.inner"),
        ("from own_deep import inner", "own_deep.inner"),
        ("def f():\n    from own_deep.inner import g", "own_deep.inner"),
        ("import importlib\nx = importlib.import_module('own_deep.inner')", "own_deep"),
        ("name = 'own_deep'\nx = __import__(name)", "own_deep"),
        ("try:\n    import own_deep\nexcept ImportError:\n    pass", "own_deep"),
    ],
)
def test_code_of__sees_every_way_to_import(how, helper, folder) -> None:
    deep = folder.path / "own_deep"
    deep.mkdir()
    (deep / "__init__.py").write_text("")
    (deep / "inner.py").write_text("def g():\n    return 1\n")
    folder.write(own_loss=f"{how}\n{LOSS}")
    before = digest()
    assert helper in before.modules
    (deep / (helper.partition(".")[2] or "__init__")).with_suffix(".py").write_text(
        "def g():\n    return 2\n"
    )
    folder.anew()
    assert before.changes(digest()) == f"`{helper}` has changed"


def test_code_of__relative_imports_belong_to_their_package(folder) -> None:
    package = folder.path / "own_pack"
    (package / "sub").mkdir(parents=True)
    for name, text in {
        "__init__": "",
        "base": "from . import other",
        "other": "",
        "sub/__init__": "from ..base import other",
    }.items():
        (package / f"{name}.py").write_text(text)
    folder.write(own_loss=f"import own_pack.sub\n{LOSS}")
    names = {"own_pack", "own_pack.base", "own_pack.other", "own_pack.sub"}
    assert names <= set(digest().modules)


def test_code_of__installed_packages_count_by_their_version(
    folder, monkeypatch
) -> None:
    folder.write(own_loss=f"import yaml, json, numpy\n{LOSS}")
    before = digest()
    assert list(before.installed) == ["PyYAML"]
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99")
    assert "PyYAML is 99 and was" in before.changes(digest())


def test_code_of__is_the_same_before_and_after_use_and_in_any_folder(
    folder, own, tmp_path
) -> None:
    first = digest(own())
    train(own(), results=tmp_path / "r")
    assert digest(own()) == first
    with_carriage_returns = LOSS.replace("\n", "\r\n").encode()
    (folder.path / "own_loss.py").write_bytes(with_carriage_returns)
    folder.anew()
    assert digest(own()) == first


def test_code_of__covers_layers_whose_module_was_not_kept(folder) -> None:
    from torch import nn

    text = "from torch import nn\nclass Own(nn.Module):\n    def forward(self, x):\n"
    file = folder.path / "hubconf_like.py"
    file.write_text(f"{text}        return x\n")
    kinds: dict = {"__name__": "hubconf_like"}
    exec(compile(file.read_text(), str(file), "exec"), kinds)
    network = nn.Sequential(kinds["Own"]())
    assert "hubconf_like" in digest(network=network).modules


def test_run_id__of_built_in_models_does_not_look_at_code(tiny, tmp_path) -> None:
    ds = train(tiny(budget={"steps": 2}), results=tmp_path)
    assert "user_code" not in ds.attrs
    config = load_config(None, [], {})
    assert config.run_id("digits", "c") == config.run_id("digits", "c", "", "")
    assert config.run_id("digits", "c") != config.run_id("digits", "c", "", "code")


# -- as it is loaded -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("own_loss", "-torch.log", "-100 * torch.log"),
        ("own_loss", "SCALE = 1.0", "SCALE = 9.0"),
        ("own_layers", "nn.Tanh()", "nn.ReLU()"),
    ],
)
@pytest.mark.parametrize("looked", [False, True])
@pytest.mark.usefixtures("any_loader")
def test_an_edit_after_the_import__is_refused_by_name(
    looked, name, old, new, folder, own, tmp_path
) -> None:
    for module in ("own_net", "own_loss"):
        importlib.import_module(module)
    if looked:
        train(own(), results=tmp_path)
    file = folder.path / f"{name}.py"
    file.write_text(file.read_text().replace(old, new))
    with pytest.raises(ValueError, match=rf"`{name}` must be .* what its file says"):
        train(own(), results=tmp_path)
    folder.anew()
    assert train(own(), results=tmp_path).attrs["status"] == "complete"


@pytest.mark.usefixtures("any_loader")
def test_a_constant_that_was_set_from_outside__is_refused(
    folder, own, tmp_path
) -> None:
    importlib.import_module("own_loss").SCALE = 5.0
    with pytest.raises(ValueError, match=r"`SCALE` is 5\.0 in this process and 1\.0"):
        train(own(), results=tmp_path)


def test_code_that_a_tool_rewrites_while_it_is_imported__is_taken_as_its_file(
    loaded_by, folder, own, tmp_path
) -> None:
    loaded_by(AddingLoader)
    assert train(own(), results=tmp_path).attrs["status"] == "complete"
    file = folder.path / "own_loss.py"
    file.write_text(LOSS.replace("-torch.log", "-100 * torch.log"))
    with pytest.raises(ValueError, match=r"`own_loss` must be .* what its file says"):
        train(own(), results=tmp_path)


def test_an_edit_of_comments__in_the_same_process_changes_nothing(
    folder, own, tmp_path
) -> None:
    before = train(own(), results=tmp_path)
    (folder.path / "own_loss.py").write_text(f"# explained\n{LOSS}")
    assert train(own(), results=tmp_path).attrs["status"] == "exists"
    assert before.attrs["status"] == "complete"


@pytest.mark.usefixtures("any_loader")
def test_a_helper_that_alone_is_loaded_anew__is_refused(folder, own, tmp_path) -> None:
    train(own(), results=tmp_path)
    (folder.path / "own_layers.py").write_text(LAYERS.replace("Tanh", "ReLU"))
    importlib.reload(sys.modules["own_layers"])
    with pytest.raises(ValueError, match=r"`own_net` holds `activation` of before"):
        train(own(), results=tmp_path)
    importlib.reload(sys.modules["own_net"])
    assert train(own(), results=tmp_path).attrs["status"] == "complete"


def test_a_module_that_is_loaded_anew__is_what_counts(folder, own, tmp_path) -> None:
    before = train(own(), results=tmp_path)
    (folder.path / "own_loss.py").write_text(LOSS.replace("SCALE *", "100 * SCALE *"))
    importlib.reload(sys.modules["own_loss"])
    after = train(own(), results=tmp_path)
    assert after.attrs["status"] == "complete"
    assert after.attrs["run_id"] != before.attrs["run_id"]


# -- runs ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [("own_loss", "SCALE *", "100 * SCALE *"), ("own_layers", "Tanh", "ReLU")],
)
def test_train__with_other_code_is_another_run(
    name, old, new, folder, own, tmp_path
) -> None:
    before = train(own(), results=tmp_path)
    assert train(own(), results=tmp_path).attrs["status"] == "exists"
    source = {"own_loss": LOSS, "own_layers": LAYERS}[name]
    folder.write(**{name: source.replace(old, new)})
    after = train(own(), results=tmp_path)
    assert after.attrs["status"] == "complete"
    assert after.attrs["run_id"] != before.attrs["run_id"]
    codes = [UserCode.from_json(ds.attrs["user_code"]) for ds in (before, after)]
    assert codes[0].changes(codes[1]) == f"`{name}` has changed"


@pytest.mark.parametrize("name", ["own_loss", "own_layers"])
def test_resume__with_other_code_is_refused_and_goes_on_with_the_old(
    name, folder, own, tmp_path
) -> None:
    run_id = stopped(own(), tmp_path).attrs["run_id"]
    source = {"own_loss": LOSS, "own_layers": LAYERS}[name]
    folder.write(**{name: f"{source}\n\ndef more():\n    return 1\n"})
    with pytest.raises(ValueError, match=rf"`checkpoint` must .*`{name}` has changed"):
        resume(run_id, results=tmp_path, trust=True)
    folder.write(**{name: source})
    assert resume(run_id, results=tmp_path).attrs["status"] == "complete"


def test_resume__of_code_that_reads_another_file_by_now_is_refused(
    folder, own, tmp_path
) -> None:
    scale = folder.path / "scale.txt"
    scale.write_text("1.0")
    reads = f"from pathlib import Path\nSCALE = float(Path({str(scale)!r}).read_text())"
    folder.write(own_loss=LOSS.replace("SCALE = 1.0", reads))
    run_id = stopped(own(), tmp_path).attrs["run_id"]
    scale.write_text("3.0")
    folder.anew()
    with pytest.raises(ValueError, match=r"`checkpoint` must .*losses such as"):
        resume(run_id, results=tmp_path)
    scale.write_text("1.0")
    folder.anew()
    assert resume(run_id, results=tmp_path).attrs["status"] == "complete"


def test_evaluate_replay_and_load__say_which_code_has_changed_and_what_it_does(
    folder, own, tmp_path, caplog
) -> None:
    ds = train(own(budget={"steps": 40}), results=tmp_path)
    store = ds.attrs["store"]
    assert evaluate_run(store)["warnings"] == []
    assert replay(store)["warnings"] == []
    caplog.clear()
    load_model(store)
    assert caplog.messages == []
    folder.write(own_layers=LAYERS.replace("Tanh", "ReLU"))
    changed = r"must be trusted.*\(`own_layers` has changed since it was made\)"
    for read in (evaluate_run, replay, load_model):  # it is nobody's code yet
        with pytest.raises(ValueError, match=changed):
            read(store)
    caplog.clear()
    load_model(store, trust=True)
    evaluated = evaluate_run(store, trust=True)["warnings"]
    replayed = replay(store, trust=True)["warnings"]
    for texts in (caplog.messages[:2], evaluated[:2], replayed):
        assert "with other code than is here: `own_layers` has changed" in texts[0]
        assert "must compute on a fixed batch what it did" in texts[1]
        assert "ReLU" in texts[1]
    assert "must score on its own data as recorded" in evaluated[2]


def test_evaluate__of_code_that_reads_another_variable_says_so(
    folder, own, tmp_path, monkeypatch
) -> None:
    reads = "import os\nSCALE = float(os.environ['OWN_SCALE'])"
    folder.write(own_loss=LOSS.replace("SCALE = 1.0", reads))
    monkeypatch.setenv("OWN_SCALE", "1.0")
    store = train(own(), results=tmp_path).attrs["store"]
    monkeypatch.setenv("OWN_SCALE", "2.0")
    folder.anew()
    first, second = evaluate_run(store)["warnings"]
    assert "got losses such as" in first
    assert "must score on its own data as recorded" in second


def test_train__of_a_run_that_exists_says_what_reads_another_variable_by_now(
    folder, own, tmp_path, monkeypatch, caplog
) -> None:
    reads = "SCALE = float(__import__('os').environ['OWN_SCALE'])"
    net = NET.replace("import torch", f"import torch\n{reads}", 1)
    net = net.replace("activation()", "nn.ReLU() if SCALE > 1 else activation()")
    folder.write(own_net=net)
    monkeypatch.setenv("OWN_SCALE", "1.0")
    train(own(), results=tmp_path)
    folder.anew()
    assert train(own(), results=tmp_path).attrs["status"] == "exists"
    assert "has changed" not in caplog.text
    monkeypatch.setenv("OWN_SCALE", "2.0")
    folder.anew()
    assert train(own(), results=tmp_path).attrs["status"] == "exists"
    assert "a file or variable that it reads, has changed" in caplog.text


@pytest.mark.parametrize("how", [evaluate_run, replay, load_model])
def test_code_that_builds_a_network_of_another_size__is_said(
    how, folder, own, tmp_path, monkeypatch
) -> None:
    width = "import os\nWIDTH = int(os.environ['OWN_WIDTH'])"
    net = NET.replace("from own_layers", f"{width}\nfrom own_layers")
    folder.write(own_net=net.replace("width=5):", "width=WIDTH):"))
    monkeypatch.setenv("OWN_WIDTH", "5")
    store = train(own(), results=tmp_path).attrs["store"]
    monkeypatch.setenv("OWN_WIDTH", "6")
    folder.anew()
    with pytest.raises(ValueError, match=r"^`model` must build the network that .* of"):
        how(store)


def test_train__names_the_run_of_before_ids_covered_the_code(
    folder, own, tmp_path
) -> None:
    ds = train(own(), results=tmp_path)
    config = load_config(None, [], json.loads(ds.attrs["config"]))
    old_id = config.run_id("digits", ds.attrs["data_sha256"])
    old = open_run(ds.attrs["store"])
    del old.attrs["user_code"], old.attrs["network_outputs"], old.attrs["network"]
    old.attrs["run_id"] = old_id
    results = tmp_path / "older"
    kept = write_run(old, results / "default" / f"{old_id}.zarr")
    (text,) = summary(train(own(), results=results))["warnings"]
    assert old_id in text
    assert "did not look at the code of the user's own model or loss" in text
    assert evaluate_run(kept)["warnings"] == []


def test_resume__a_checkpoint_of_an_older_version_goes_on(
    folder, own, tmp_path
) -> None:
    from pathlib import Path

    path = Path(stopped(own(), tmp_path).attrs["store"])
    saved = pack.load(path)
    kept = {k: saved[k] for k in saved if k not in ("user_code", "first_outputs")}
    pack.save(path, kept)
    ds = resume(path)
    assert ds.attrs["status"] == "complete"
    (text,) = ds.attrs["warnings"]
    assert "whether it has changed since cannot be told" in text


def test_every_run_records_its_networks_text_and_outputs(sync_run) -> None:
    attrs = sync_run[0].attrs
    assert attrs["network"].startswith("Sequential(")
    found = json.loads(attrs["network_outputs"])
    assert [len(row) for row in found["outputs"]] == [10] * 4
    assert len(found["losses"]) == 4


def test_a_process_with_other_code_than_it_was_told__refuses_to_compute(
    folder, own, context_for
) -> None:
    context = context_for(own())
    told = digest(own())
    Context(replace(context.spec, code=told), context.data._store)
    other = UserCode(told.modules | {"own_layers": "0" * 64}, {"some-package": "1"})
    with pytest.raises(ValueError, match="same code in every process") as caught:
        Context(replace(context.spec, code=other), context.data._store)
    assert "in this process `own_layers` has changed, some-package is not imp" in str(
        caught.value
    )


def test_code_of__reads_modules_in_an_archive(folder, tmp_path, monkeypatch) -> None:
    archive = tmp_path / "own_zipped.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("own_zipped.py", "X = 1\n")
    monkeypatch.syspath_prepend(archive)
    folder.write(own_loss=f"import own_zipped\n{LOSS}")
    found = digest().modules["own_zipped"]
    assert found == hashlib.sha256(archive.read_bytes()).hexdigest()


@pytest.mark.usefixtures("any_loader")
def test_an_older_compiled_file_that_python_takes_for_the_source__is_noticed(
    folder, own, tmp_path, monkeypatch
) -> None:
    """Time in whole seconds, and size, are all that Python compares."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file = folder.path / "own_loss.py"
    importlib.import_module("own_loss")
    about = file.stat()
    file.write_text(LOSS.replace("SCALE * -", "SCALE * 3 * -").replace("= 1.0", "=1"))
    assert file.stat().st_size == about.st_size + 1
    file.write_text(file.read_text()[:-1])
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))
    folder.anew()
    with pytest.raises(ValueError, match=r"`own_loss` must be .* what its file says"):
        train(own(), results=tmp_path)


NOTEBOOK = """
import functools, torch
from torch import nn

WIDTH, SCALE, WEIGHTS = 4, 1.0, torch.ones(3)


class Base(nn.Module):
    factor = 2.0


class Net(Base):
    def __init__(self, image_shape, n_classes):
        super().__init__()
        self.layer = nn.Linear(WIDTH, n_classes)


def scaled(scale):
    return lambda logits, targets, power=1: scale * WEIGHTS * SCALE**power


loss, fixed = scaled(1.0), functools.partial(scaled(2.0), power=3)
"""


@pytest.mark.parametrize(
    ("cell", "same"),
    [
        ("def plot(): return index", True),
        ("index, ds = 3, object()", True),
        ("loss = scaled(1.0)", True),
        ("WIDTH = 5", False),
        ("SCALE = 2.0", False),
        ("WEIGHTS = 2 * WEIGHTS", False),
        ("Base.factor = 3.0", False),
        ("loss = scaled(2.0)", False),
        ("loss.__defaults__ = (2,)", False),
        ("loss = fixed", False),
        ("fixed = functools.partial(scaled(2.0), power=4)", True),
    ],
)
def test_code_of_a_notebook__covers_what_its_model_and_loss_need_and_nothing_else(
    cell, same, tiny, monkeypatch
) -> None:
    notebook = types.ModuleType("own_notebook")
    monkeypatch.setitem(sys.modules, "own_notebook", notebook)
    exec(NOTEBOOK, vars(notebook))
    config = tiny(model={"name": "own_notebook:Net"}, loss="own_notebook:loss")
    before = code_of(config, None)
    exec(cell, vars(notebook))
    assert (code_of(config, None) == before) is same
    assert before.modules.keys() == {"own_notebook"}


def test_code_that_is_piped_in__has_no_file(tiny, monkeypatch) -> None:
    piped = types.ModuleType("own_notebook")
    piped.__file__ = "<stdin>"
    monkeypatch.setitem(sys.modules, "own_notebook", piped)
    exec(NOTEBOOK, vars(piped))
    config = tiny(model={"name": "own_notebook:Net"}, loss="own_notebook:loss")
    assert code_of(config, None).modules.keys() == {"own_notebook"}


def test_outputs_of_another_device__may_be_rounded_otherwise(sync_run, caplog) -> None:
    ds = open_run(sync_run[0].attrs["store"])
    found = json.loads(ds.attrs["network_outputs"])
    found["outputs"][0][0] += 1e-3 * max(map(abs, found["outputs"][0]))
    ds.attrs["network_outputs"] = json.dumps(found)
    load_model(ds)
    assert "must compute on a fixed batch" in caplog.text
    caplog.clear()
    ds.attrs["config"] = json.dumps(json.loads(ds.attrs["config"]) | {"device": "cuda"})
    load_model(ds)
    assert not caplog.text
