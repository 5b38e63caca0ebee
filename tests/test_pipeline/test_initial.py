"""Starting from a trained network: a run, or a safetensors file."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from pipeline.run_store import write_run
from pipeline.runs import export_run, load_model
from pipeline.train import train


@pytest.fixture(scope="module")
def first(tiny, tmp_path_factory):
    results = tmp_path_factory.mktemp("first")
    return train(tiny(algorithm={"kind": "sgd"}), results=results), results


@pytest.mark.parametrize("by", ["run", "path", "file"])
def test_init__starts_where_the_other_run_ended(by, first, tiny, tmp_path) -> None:
    before, results = first
    init = {"run": before.attrs["run_id"], "path": before.attrs["store"]}.get(by)
    if by == "file":
        init = str(export_run(before.attrs["store"], tmp_path / "m.safetensors"))
    ds = train(tiny(init=init), results=results, again=True)
    for name in ("test_loss", "test_accuracy", "val_loss"):
        assert float(ds[name][0]) == float(before[name][-1])
    assert ds.attrs["params_sha256"] != before.attrs["params_sha256"]


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_export__then_init_keeps_parameters_and_buffers_exactly(
    norm, tiny, tmp_path
) -> None:
    model = {"name": "resnet8", "options": {"norm": norm}}
    flags = {"model": model, "algorithm": {"kind": "sgd"}, "eval_every": 2}
    before = train(tiny(budget={"steps": 2}, **flags), results=tmp_path)
    file = export_run(before.attrs["run_id"], tmp_path / "m.safetensors", tmp_path)
    after = train(tiny(budget={"steps": 1}, init=str(file), **flags), results=tmp_path)
    assert float(after.test_loss[0]) == float(before.test_loss[-1])
    state = {k: v.numpy() for k, v in load_model(before).state_dict().items()}
    stored = load_file(file)
    assert set(stored) >= set(state)
    for name, values in state.items():
        np.testing.assert_array_equal(stored[name], values)


def test_init__tensors_of_another_shape_are_named(first, tiny, tmp_path) -> None:
    before, results = first
    file = export_run(before.attrs["store"], tmp_path / "m.safetensors")
    wider = tiny(init=str(file), model={"hidden": [7]})
    with pytest.raises(ValueError, match=r"`init` must hold `.*` of shape .*got shape"):
        train(wider, results=tmp_path)
    with pytest.raises(ValueError, match="`init` must have the model's"):
        train(tiny(init=before.attrs["store"], model={"hidden": [7]}), results=results)
    some = load_file(file)
    some.pop(next(iter(some)))
    save_file(some, file)
    with pytest.raises(ValueError, match=r"`init` must hold .*got nothing"):
        train(tiny(init=str(file)), results=tmp_path)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\xff" * 16])
def test_init__a_file_that_is_none_is_a_clear_error(content, tiny, tmp_path) -> None:
    file = tmp_path / "m.safetensors"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="`init` must be a safetensors file"):
        train(tiny(init=str(file)), results=tmp_path)
    with pytest.raises(FileNotFoundError, match="`init` must be an existing file"):
        train(tiny(init=str(tmp_path / "no.safetensors")), results=tmp_path)


def test_init__of_a_run_with_other_shapes_is_refused_though_the_size_is_the_same(
    tiny, tmp_path
) -> None:
    """64·h + h + 10·h + 10 parameters can be had in other ways, too."""
    run = train(tiny(budget={"steps": 1}), results=tmp_path)
    layout = json.loads(run.attrs["layout"])
    layout[0][1] = layout[0][1][::-1]
    run.attrs["layout"] = json.dumps(layout)
    store = write_run(run, tmp_path / "default" / "other.zarr")
    with pytest.raises(ValueError, match="`init` must have parameters of the model's"):
        train(tiny(init=str(store)), results=tmp_path)
