from pathlib import Path

import pytest

from flows.options import build_config, nested_flags


def test_flags__only_what_is_given_is_passed_on():
    assert nested_flags() == {}
    assert nested_flags(seed=0) == {"seed": 0}


def test_flags__are_nested_as_the_configuration_is():
    flags = nested_flags(
        dataset="mnist",
        model="mlp",
        hidden="64,32",
        algorithm="sgd",
        budget="steps=5,seconds=2s",
        delay=["2=50ms"],
        workers=3,
        address="tcp://host:8786",
    )
    assert flags == {
        "dataset": "mnist",
        "model": {"name": "mlp", "hidden": (64, 32)},
        "algorithm": {"kind": "sgd"},
        "budget": {"steps": 5, "seconds": 2.0},
        "delays": {2: 0.05},
        "cluster": {"kind": "address", "workers": 3, "address": "tcp://host:8786"},
    }


def test_flags__block_patterns_make_custom_blocks():
    flags = nested_flags(block=["^0", "^2"])
    assert flags == {"blocks": "custom", "custom_blocks": ["^0", "^2"]}


def test_flags__of_replicas_become_settings():
    flags = nested_flags(nodes=3, machines=2, latency="20ms", skew=0.0)
    assert flags == {"nodes": 3, "machines": 2, "latency_s": 0.02, "skew": 0.0}
    config = build_config(None, [], flags | {"algorithm": "local-sgd"})
    assert (config.nodes, config.machines, config.latency_s) == (3, 2, 0.02)
    assert config.skew == 0.0
    with pytest.raises(ValueError, match="`duration` must be"):
        build_config(None, [], nested_flags(algorithm="local-sgd", latency="-1s"))


def test_flags__address_and_scheduler_file_exclude_each_other():
    with pytest.raises(ValueError, match="--scheduler-file"):
        nested_flags(address="tcp://a:1", scheduler_file=Path("s.json"))


def test_config__file_then_flags_then_set(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("dataset: mnist\nseed: 1\nbudget: {loss_values: 60}\n")
    flags = nested_flags(seed=2, budget="steps=5", mode="async", staleness=3)
    config = build_config(path, ["eval_every=7"], flags)
    assert (config.dataset, config.seed, config.eval_every) == ("mnist", 2, 7)
    assert (config.budget.steps, config.budget.loss_values) == (5, None)
    assert (config.mode, config.staleness_bound) == ("async", 3)


@pytest.mark.parametrize(
    ("overrides", "flags", "said"),
    [
        (["nonsense=1"], {}, "nonsense"),
        (["seed"], {}, "key=value"),
        ([], {"algorithm": "genetic"}, "genetic"),
        ([], {"mode": "later"}, "mode"),
        ([], {"workers": 0}, "workers"),
        ([], {"device": "tpu"}, "device"),
    ],
)
def test_config__a_wrong_key_or_value_is_named(overrides, flags, said):
    with pytest.raises(ValueError, match=said):
        build_config(None, overrides, nested_flags(**flags))
