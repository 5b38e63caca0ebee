import pytest

from flows.parsing import parse_budget, parse_delays, parse_duration, parse_sizes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("50ms", 0.05),
        ("1.5s", 1.5),
        ("2min", 120.0),
        ("1h", 3600.0),
        ("0.05", 0.05),
        (" 3 S ", 3.0),
        ("250us", 250e-6),
        (".5s", 0.5),
    ],
)
def test_duration__number_times_unit(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize("text", ["", "ms", "-1s", "5 parsecs", "1e3s", "nan"])
def test_duration__anything_else_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match=r"got .*Write for example 50ms"):
        parse_duration(text)


def test_budget__several_limits():
    budget = parse_budget("loss-values=6_000, seconds=2min,steps=5e2")
    assert budget == {"loss_values": 6000, "seconds": 120.0, "steps": 500}
    assert isinstance(budget["steps"], int)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("6000", "KEY=VALUE"),
        ("fish=2", "'fish=2'"),
        ("steps=0", "positive"),
        ("steps=-3", "positive"),
        ("steps=1.5", "whole number"),
        ("steps=many", "whole number"),
        ("steps=inf", "whole number"),
        ("steps=1,steps=2", "twice"),
        ("", "KEY=VALUE"),
        ("seconds=0s", "positive"),
    ],
)
def test_budget__bad_limits_name_rule_and_value(text, said):
    with pytest.raises(ValueError, match="--budget") as caught:
        parse_budget(text)
    assert said in str(caught.value)


def test_delays__block_to_seconds():
    assert parse_delays(["2=50ms", "0=1.5s"]) == {2: 0.05, 0: 1.5}


@pytest.mark.parametrize(
    "texts", [["50ms"], ["-1=5s"], ["a=5s"], ["1=1s", "1=2s"], ["9" * 5000 + "=1s"]]
)
def test_delays__bad_ones_are_refused(texts):
    with pytest.raises(ValueError, match="--delay"):
        parse_delays(texts)


@pytest.mark.parametrize(
    ("text", "sizes"), [("32", (32,)), ("64, 32", (64, 32)), ("none", ()), ("", ())]
)
def test_sizes__hidden_layers(text, sizes):
    assert parse_sizes(text) == sizes


@pytest.mark.parametrize("text", ["a", "32,", "-3", "32,0", "3.5", "9" * 5000])
def test_sizes__bad_ones_are_refused(text):
    with pytest.raises(ValueError, match="--hidden"):
        parse_sizes(text)
