from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from pipeline.schema import VARIABLES, check_schema, describe, variable


def test_check_schema__accepts_a_run_with_and_without_buffers(synthetic_run):
    run = synthetic_run()
    check_schema(run)
    check_schema(run.assign(buffers=variable("buffers", [0.0, 1.0])))


def test_check_schema__names_every_problem_at_once(synthetic_run):
    run = synthetic_run()
    broken = run.drop_vars("step").assign(
        version=run["version"].astype("int32"),
        score_loss=("update", np.zeros(run.sizes["update"])),
        extra=("eval", np.zeros(run.sizes["eval"])),
    )
    del broken.attrs["git_commit"]
    broken.attrs["seed"] = True
    broken.attrs["config"] = "{not json"
    with pytest.raises(ValueError, match="nd-cao-sync-digits-s0") as caught:
        check_schema(broken)
    text = str(caught.value)
    for words in (
        "`step` must be present",
        "`version` must have dtype int64; got int32",
        "`score_loss` must have dims ('score',); got ('update',)",
        "`extra` must be registered",
        "attribute `git_commit` must be present",
        "attribute `seed` must be int; got True",
        "attribute `config` must hold JSON",
    ):
        assert words in text


def test_check_schema__refuses_other_units(synthetic_run):
    run = synthetic_run()
    run["wall_time_s"].attrs["units"] = "ms"
    with pytest.raises(ValueError, match="`wall_time_s` must have units 's'; got 'ms'"):
        check_schema(run)


def test_variable__has_the_registered_dims_dtype_and_attributes():
    made = variable("score_losses", [[1], [2]])
    assert made.dims == ("score", "probe")
    assert made.dtype == np.float64
    assert made.attrs == describe("score_losses")


def test_describe__refuses_an_unknown_name():
    with pytest.raises(KeyError, match="registered result variable; got 'los'"):
        describe("los")


def test_registry__every_variable_has_units_and_words():
    for spec in VARIABLES.values():
        assert spec.units
        assert spec.long_name
        assert spec.meaning


def test_run_store__opens_with_plain_xarray_and_keeps_the_schema(
    tmp_path, synthetic_run
):
    run = synthetic_run(n_evals=4)
    run.to_zarr(tmp_path / "a.zarr", zarr_format=3, consolidated=False)
    with xr.open_zarr(tmp_path / "a.zarr", consolidated=False) as opened:
        check_schema(opened)
        xr.testing.assert_identical(opened.load(), run)
