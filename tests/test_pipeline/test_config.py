"""Settings: what they accept, what they refuse, and what a run's id depends on."""

from __future__ import annotations

import re

import pytest

from pipeline.config import RunConfig, load_config, validate_config
from pipeline.data_store import open_store
from pipeline.resolve import resolve


def run_id(content: str = "c", **flags) -> str:
    return load_config(None, [], flags).run_id("digits", content)


@pytest.mark.parametrize(
    "changed",
    [
        {"seed": 1},
        {"algorithm": {"step_size": 0.02}},
        {"budget": {"steps": 301}},
        {"blocks": "by_layer"},
        {"loss": "squared"},
        {"n_shards": 2},
        {"threads": 2},
        {"centring": "channel"},
        {"precision": "bfloat16"},
    ],
)
def test_run_id__changes_with_what_the_mathematics_depends_on(changed) -> None:
    assert run_id(**changed) != run_id()


@pytest.mark.parametrize("algorithm", ["sgd", "activity-perturbation"])
def test_precision__is_for_scores_that_it_does_not_blur(algorithm) -> None:
    with pytest.raises(ValueError, match=rf"`precision` must be float32.*{algorithm}"):
        load_config(None, [], {"algorithm": algorithm, "precision": "bfloat16"})


def test_run_id__changes_with_the_data_sets_content() -> None:
    assert run_id("one") != run_id("two")


def test_run_id__covers_the_values_to_start_from_and_not_their_path() -> None:
    one = load_config(None, [], {"init": "one.safetensors"})
    two = load_config(None, [], {"init": "two.safetensors"})
    assert one.run_id("digits", "c", "start") == two.run_id("digits", "c", "start")
    assert one.run_id("digits", "c", "start") != one.run_id("digits", "c", "other")


@pytest.mark.parametrize(
    "changed",
    [
        {"cluster": {"workers": 4}},
        {"cluster": {"kind": "address", "address": "tcp://h:1"}},
        {"eval_every": 3},
        {"checkpoint_every_s": 1.0},
        {"dataset": "elsewhere/digits.zarr"},
        {"delays": {0: 0.1}},
        {"own_worker": [0]},
    ],
)
def test_run_id__of_a_synchronous_run_ignores_where_it_computes(changed) -> None:
    assert run_id(**changed) == run_id()


@pytest.mark.parametrize(
    "changed", [{"cluster": {"workers": 4}}, {"delays": {0: 0.1}}, {"own_worker": [0]}]
)
def test_run_id__of_an_asynchronous_run_covers_workers_and_delays(changed) -> None:
    assert run_id(mode="async", **changed) != run_id(mode="async")


def test_staleness_zero__is_a_barrier_in_either_mode() -> None:
    assert load_config(None, [], {"mode": "async", "staleness": 0}).barrier
    assert load_config(None, [], {"mode": "sync"}).barrier
    assert load_config(None, [], {"mode": "async"}).staleness_bound is None


def test_load_config__flags_go_over_the_file_and_set_goes_over_both(tmp_path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("seed: 3\nblocks: by_layer\nalgorithm: {window: 20, ridge: 0.5}\n")
    config = load_config(
        file, ["nd_cao.window=30", "model.hidden=[64,32]"], {"seed": 4}
    )
    assert (config.seed, config.blocks) == (4, "by_layer")
    assert (config.algorithm.window, config.algorithm.ridge) == (30, 0.5)
    assert config.model.hidden == (64, 32)


def test_load_config__another_algorithm_drops_the_files_settings_of_the_old_one(
    tmp_path,
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("algorithm: {kind: nd-cao, window: 20}\n")
    config = load_config(file, [], {"algorithm": {"kind": "sgd"}})
    assert config.algorithm.kind == "sgd"


def test_run_config__comes_back_from_its_own_json() -> None:
    config = load_config(
        None, ["nd_cao.probes=4"], {"delays": {2: 0.05}, "mode": "async"}
    )
    assert RunConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"algorithm": "nd-coa"}, "`algorithm` must be one of nd-cao"),
        ({"sede": 1}, "`sede` is not a setting"),
        ({"sgd": {"step_size": 1}}, "`sgd` must not be a section of its own. Write"),
        ({"nd_cao": 3}, "`nd_cao` must not be a section of its own. Write"),
        ({"algorithm": {"widow": 3}}, "`algorithm.widow` is not a setting"),
        ({"seed": -1}, "`seed` is not valid"),
        ({"budget": {}}, "`budget` must set at least one"),
        ({"staleness": 2}, "`staleness` must be 0 in sync mode"),
        ({"mode": "async", "algorithm": "sgd"}, "`mode` must be one of sync"),
        (
            {"algorithm": "sgd", "budget": {"loss_values": 3}},
            "`budget.loss_values` must not be used with algorithm sgd",
        ),
        ({"cluster": {"kind": "address"}}, "`cluster.address` must name a scheduler"),
        ({"cluster": {"kind": "scheduler-file"}}, "`cluster.scheduler_file` must"),
        ({"experiment": "../x"}, "`experiment` must be letters"),
        ({"custom_blocks": ["a"], "blocks": "all"}, "`custom_blocks` must come with"),
        ({"algorithm": {"step_size": -1}}, "`step_size` must be positive"),
    ],
)
def test_validate_config__says_which_key_breaks_which_rule(data, message) -> None:
    with pytest.raises(ValueError, match=message):
        validate_config(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"nodes": 3, "blocks": "by_layer"}, "`nodes` must be left out with algorithm"),
        ({"machines": 2}, "`machines` must be left out with algorithm nd-cao"),
        ({"skew": 0.5}, "`skew` must be left out with algorithm nd-cao"),
        ({"latency_s": 0.1}, "`latency_s` must be left out with algorithm nd-cao"),
        ({"algorithm": "sgd", "nodes": 2}, "`nodes` must be 1 for algorithm sgd"),
        ({"algorithm": "dbs", "skew": 0.5}, "`skew` must be 0 with algorithm dbs"),
        ({"algorithm": "selsync", "skew": 1}, "`skew` must be 0 with algorithm selsy"),
        ({"algorithm": "local-sgd", "skew": 1.5}, "`skew` is not valid"),
        ({"algorithm": "local-sgd", "nodes": 0}, "`nodes` is not valid"),
        (
            {"algorithm": "local-sgd", "nodes": 2, "machines": 3},
            "`machines` must be at most `nodes` = 2; got 3",
        ),
        (
            {"algorithm": "async-sgd", "mode": "sync"},
            "`mode` must be one of async for algorithm async-sgd",
        ),
        (
            {"algorithm": "async-sgd", "mode": "async", "staleness": 0},
            "`staleness` must be left out with algorithm async-sgd",
        ),
        (
            {"algorithm": "nosync", "mode": "async", "latency_s": 0.1},
            "`latency_s` must be 0 in async mode",
        ),
    ],
)
def test_validate_config__says_what_replicas_are_for(data, message) -> None:
    with pytest.raises(ValueError, match=message):
        validate_config(data)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"machines": 5}, "`machines` must be at most 4 here; got 5"),
        ({"nodes": 10_000}, "`nodes` must be at most [0-9]+ here; got 10000"),
    ],
)
def test_resolve__more_replicas_than_samples_or_machines_than_replicas_are_refused(
    flags, message, tiny, context_for
) -> None:
    with pytest.raises(ValueError, match=message):
        context_for(tiny(algorithm={"kind": "local-sgd"}, **flags))


def test_resolve__fills_in_nodes_and_machines(tiny, context_for) -> None:
    def resolved(kind: str, **flags) -> tuple[int | None, int | None]:
        config = context_for(tiny(algorithm={"kind": kind}, **flags)).config
        return config.nodes, config.machines

    assert resolved("local-sgd") == (4, 1)
    assert resolved("node-based") == (4, 2)
    assert resolved("node-based", nodes=1) == (1, 1)
    assert resolved("sgd") == (1, 1)
    assert resolved("nd-cao") == (None, None)


def test_run_id__of_replicas_covers_nodes_and_skew_but_no_latency() -> None:
    base = {"algorithm": {"kind": "local-sgd"}}
    for changed in ({"nodes": 3}, {"skew": 0.5}, {"machines": 2}):
        assert run_id(**base, **changed) != run_id(**base)
    assert run_id(**base, latency_s=0.1) == run_id(**base)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("nd_cao.window", "must be key=value"),
        ("sgd.momentum=0.5", "must belong to the run's algorithm nd-cao"),
        ("seed.x=1", "must name a setting inside a section"),
        ("seed={", "must be a YAML value"),
        ("a..b=1", "`--set` must name a setting"),
        (
            "cluster.dashboard=no",
            "`cluster.dashboard` must be a YAML value.* or a text",
        ),
        ("model.options={a: 1, a: 2}", "a must stand once"),
    ],
)
def test_load_config__refuses_a_broken_override(override, message) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(None, [override], {"seed": 1})


def test_load_config__a_missing_or_broken_file_is_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        load_config(tmp_path / "none.yaml")
    broken = tmp_path / "broken.yaml"
    broken.write_text("a: [")
    with pytest.raises(ValueError, match=r"broken\.yaml:1: must be valid YAML"):
        load_config(broken)
    broken.write_text("- 1\n")
    with pytest.raises(ValueError, match="mapping of settings; got a sequence"):
        load_config(broken)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nwimdow: 2\n", "run.yaml:2: wimdow: is not a setting."),
        ("seed: 1\nsgd:\n  step_size: 1\n", "run.yaml:2: sgd: must not be a section"),
        ("cluster:\nseed: 1\n", "run.yaml:1: cluster: must be a mapping of settings"),
        ("model:\n  hidden: [a]\n", "run.yaml:2: model.hidden[0]: is not valid"),
        ("algorithm:\n  kind: [1]\n", "run.yaml:1: algorithm: must be one of nd-cao"),
        ("mode: sync\nstaleness: 2\n", "run.yaml:2: staleness: must be 0 in sync"),
        ("seed: 1\nseed: 2\n", "run.yaml:2: seed: must stand once; it is in line 1"),
        ("cluster: {dashboard: no}\n", "run.yaml:1: cluster.dashboard: must be true"),
        (
            "budget: {steps: 1_0e, seconds: x}",
            "run.yaml:1: budget.steps: is not valid",
        ),
    ],
)
def test_load_config__says_file_line_and_key(text, message, tmp_path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match="^.*" + re.escape(message)):
        load_config(file)


def test_load_config__a_wrong_flag_is_not_blamed_on_the_file(tmp_path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("seed: 3\nmode: sync\n")
    with pytest.raises(ValueError, match=r"^`seed` is not valid: .* got -1\.$"):
        load_config(file, ["seed=-1"])
    file.write_text("cluster: {workers: 3}\n")
    with pytest.raises(ValueError, match=r"^`cluster\.workers` is not valid: .* got 0"):
        load_config(file, ["cluster.workers=0"])


def test_load_config__set_changes_neither_a_twin_of_an_alias_nor_the_callers_flags(
    tmp_path,
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "model: {name: mlp, options: &o {bias: true}}\ncluster: {options: *o}\n"
    )
    flags = {"budget": {"steps": 3}}
    config = load_config(file, ["model.options.bias=3", "budget.steps=4"], flags)
    assert (config.model.options, config.cluster.options) == (
        {"bias": 3},
        {"bias": True},
    )
    assert (config.budget.steps, flags) == (4, {"budget": {"steps": 3}})


def test_load_config__a_latin_1_file_is_named_and_a_byte_order_mark_is_none(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_bytes(b"seed: 3\nmodel: {name: m\xe9thode}\n")
    with pytest.raises(
        ValueError, match=r"run\.yaml:2: must be UTF-8 text; got byte 0x"
    ):
        load_config(file)
    file.write_bytes(b"\xef\xbb\xbfseed: 3\n")
    assert load_config(file).seed == 3


@pytest.mark.parametrize(
    ("hidden", "blocks"),
    [((16,), "by_unit:17"), ((8,), "by_unit:9"), ((), "by_unit:1")],
)
def test_resolve__the_default_partition_fits_a_small_network(digits, hidden, blocks):
    config = load_config(flags={"model": {"name": "mlp", "hidden": list(hidden)}})
    assert resolve(config, open_store(digits)).blocks == blocks


def test_resolve__a_partition_that_was_asked_for_is_not_changed(digits):
    flags = {"model": {"hidden": [8]}, "blocks": "by_unit:17"}
    assert resolve(load_config(flags=flags), open_store(digits)).blocks == "by_unit:17"
