import pytest

from blocks.schedules import NOMINAL_STEPS, step_size_at


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("robbins-monro", [0.1, 0.1 * 51**-0.75, 0.1 * 101**-0.75]),
        ("geometric", [0.1, 0.01, 0.001]),
        ("linear", [0.1, 0.0505, 0.001]),
        ("constant", [0.1, 0.1, 0.1]),
    ],
)
def test_step_size_at__follows_its_formula(schedule, expected):
    got = [step_size_at(schedule, k, 100, 0.1, 0.001, 0.75) for k in (0, 50, 100)]
    assert got == pytest.approx(expected, rel=1e-12)


def test_step_size_at__stays_at_the_end_of_the_schedule():
    assert step_size_at("linear", 500, 100, 0.1, 0.02) == pytest.approx(0.02)


def test_step_size_at__open_ended_run_uses_the_nominal_length():
    half = step_size_at("geometric", NOMINAL_STEPS // 2, 0, 0.1, 0.001)
    assert half == pytest.approx(0.01)


def test_step_size_at__robbins_monro_meets_the_conditions_of_the_family():
    alphas = [step_size_at("robbins-monro", k, 0, 1.0, 1.0) for k in range(100_000)]
    assert sum(alphas) > 12  # grows like log k
    assert sum(a * a for a in alphas) < 1.6450  # below π²/6


def test_step_size_at__unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="`schedule` must be"):
        step_size_at("cosine", 0, 10, 0.1, 0.1)
