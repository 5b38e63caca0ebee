"""ND-CAO's settings: what is refused, and how they stand in a configuration."""

import pickle

import pytest

from blocks.nd_cao import NDCAO


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 2}, "`window` must be at least"),
        ({"window": 10, "probes": 12}, "`window` must be at least"),
        ({"ridge": 0.0}, "`ridge` must be positive"),
        ({"step_size": float("nan")}, "`step_size` must be positive"),
        ({"candidates": 1}, "`candidates` must be at least 2"),
        ({"probes": 3}, "`probes` must be 1, or even"),
        ({"exploration": -0.1}, "`exploration` must be finite"),
        ({"monomials_kept": 1.0}, "`monomials_kept` must lie"),
        ({"degree": 4}, "`degree` must be 1, 2 or 3"),
        ({"images": (2, 0, 3)}, "`images` must hold"),
        ({"images": (2, 3, 3), "probes": 2}, "`images` must be None"),
        ({"smoothing": -1.0}, "`smoothing` must be finite and not negative"),
        ({"candidate_draw": "uniform"}, "`candidate_draw` must be"),
        ({"exploration": 0.0, "probes": 2}, "`probe_std` must be given"),
    ],
)
def test_nd_cao__setting_out_of_range_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        NDCAO(**settings)


def test_nd_cao__is_a_strict_section_of_a_pydantic_config():
    pydantic = pytest.importorskip("pydantic")
    adapter = pydantic.TypeAdapter(NDCAO)
    assert adapter.validate_python({"kind": "nd-cao", "window": 60}).window == 60
    with pytest.raises(pydantic.ValidationError, match="windw"):
        adapter.validate_python({"kind": "nd-cao", "windw": 60})
    assert pickle.loads(pickle.dumps(NDCAO(window=60))) == NDCAO(window=60)
