"""Claims of `blocks.partition`, `blocks.groupings`, `blocks.units`, `blocks.layout`."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from blocks.models import build_model
from blocks.partition import (
    Block,
    Layout,
    join,
    parse_spec,
    partition,
    split,
    validate_blocks,
)


class Tied(nn.Module):
    """A weight used twice, a frozen one, a scalar, and two kinds of buffer."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.encode = nn.Linear(6, 4)
        self.norm = nn.BatchNorm1d(4)
        self.decode = nn.Linear(4, 6, bias=False)
        self.again = nn.Linear(6, 4)
        self.again.weight = self.encode.weight
        self.frozen = nn.Linear(6, 6)
        self.frozen.requires_grad_(False)


MODULES = {
    "mlp": build_model("mlp", (1, 8, 8), 10, hidden=(12, 7)),
    "lenet": build_model("lenet", (1, 8, 8), 10),
    "resnet8": build_model("resnet8", (1, 8, 8), 10, norm="batch"),
    "tied": Tied(),
    "lstm": nn.ModuleDict({"rnn": nn.LSTM(5, 3, num_layers=2), "out": nn.Linear(3, 2)}),
    "transposed": nn.Sequential(
        nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 3)
    ),
    "embedding": nn.Sequential(nn.Embedding(11, 4), nn.LayerNorm(4), nn.Linear(4, 3)),
    "attention": nn.MultiheadAttention(8, 2),
}
specs = st.one_of(
    st.sampled_from(["all", "by_layer", "by_unit:2", "by_unit:3"]),
    st.integers(1, 24).map(lambda n: f"by_size:{n}"),
    st.tuples(st.integers(1, 24), st.integers(0, 10**9)).map(
        lambda pair: f"random:{pair[0]}:{pair[1]}"
    ),
)


@given(st.sampled_from(sorted(MODULES)), specs)
@settings(max_examples=120, deadline=None)
def test_partition__blocks_are_disjoint_cover_and_are_deterministic(name, spec):
    module = MODULES[name]
    n_params = Layout.from_module(module).n_params
    blocks = partition(spec, module)
    everything = np.concatenate([block.indices for block in blocks])
    assert np.array_equal(np.sort(everything), np.arange(n_params))
    assert all(np.all(np.diff(block.indices) > 0) for block in blocks)
    assert [block.index for block in blocks] == list(range(len(blocks)))
    assert len({block.name for block in blocks}) == len(blocks)
    assert blocks == partition(spec, module)


@given(st.sampled_from(sorted(MODULES)), specs, st.sampled_from([(), (3,), (2, 2)]))
@settings(max_examples=80, deadline=None)
def test_partition__join_of_split_is_identity(name, spec, lead):
    module = MODULES[name]
    n_params = Layout.from_module(module).n_params
    blocks = partition(spec, module)
    params = torch.arange(float(np.prod(lead, dtype=int) * n_params))
    params = params.reshape(*lead, n_params)
    before = params.clone()
    parts = split(params, blocks)
    assert [part.shape[-1] for part in parts] == [block.size for block in blocks]
    joined = join(parts, blocks, n_params)
    assert torch.equal(joined, params)
    for part in parts:
        part.fill_(-1.0)
    assert torch.equal(params, before)
    assert torch.equal(joined, before)


def test_layout__shared_once_frozen_never_buffers_apart():
    layout = Layout.from_module(Tied())
    assert layout.names == (
        "scale",
        "encode.weight",
        "encode.bias",
        "norm.weight",
        "norm.bias",
        "decode.weight",
        "again.bias",
    )
    assert layout.n_params == 1 + 24 + 4 + 4 + 4 + 24 + 4
    assert [s.name for s in layout.buffer_segments] == [
        "norm.running_mean",
        "norm.running_var",
    ]
    assert layout.n_buffers == 8
    assert layout.describe()["params"][1] == {"name": "encode.weight", "shape": [4, 6]}


def test_by_layer__is_one_block_a_weight_layer_with_its_normalisation():
    blocks = partition("by_layer", MODULES["transposed"])
    assert [(block.name, block.size) for block in blocks] == [
        ("0", 4 * 3 * 9 + 6 + 6 + 6),
        ("2", 6 * 2 * 9 + 2),
    ]


def test_by_layer__without_weight_arrays_is_one_block_a_parameter():
    blocks = partition("by_layer", nn.LayerNorm(3))
    assert [block.name for block in blocks] == ["weight", "bias"]


@pytest.mark.parametrize("norm", ["group", "batch"])
def test_by_layer__of_resnet8_is_its_ten_weight_layers(norm):
    module = build_model("resnet8", (3, 8, 8), 10, norm=norm)
    assert len(partition("by_layer", module)) == 10


def test_by_unit__nine_blocks_of_a_32_unit_perceptron_are_four_units_each():
    module = build_model("mlp", (1, 28, 28), 10)
    blocks = partition("by_unit:9", module)
    assert [block.size for block in blocks] == [4 * 785] * 8 + [330]
    weight_of_unit_4 = np.arange(4 * 784, 5 * 784)
    assert np.isin(weight_of_unit_4, blocks[1].indices).all()
    assert 32 * 784 + 4 in blocks[1].indices  # its bias


def test_by_unit__channel_keeps_weight_bias_and_normalisation_together():
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 1, 3))
    blocks = partition("by_unit:4", module)
    for unit, block in enumerate(blocks[:3]):
        expected = [*range(18 * unit, 18 * unit + 18), 54 + unit, 57 + unit, 60 + unit]
        assert block.indices.tolist() == expected
    assert blocks[3].size == 28


def test_by_unit__transposed_convolution_counts_output_channels_by_group():
    module = nn.ConvTranspose2d(4, 6, 2, groups=2)
    both = nn.Sequential(module, nn.Conv2d(6, 1, 1))
    blocks = partition("by_unit:7", both)
    with torch.no_grad():
        base = module(torch.ones(1, 4, 3, 3))
        for unit in range(6):
            flat = torch.cat([p.reshape(-1) for p in module.parameters()])
            flat[torch.tensor(blocks[unit].indices)] += 1.0
            weight, bias = flat[:-6].view(4, 3, 2, 2), flat[-6:]
            moved = nn.functional.conv_transpose2d(
                torch.ones(1, 4, 3, 3), weight, bias, groups=2
            )
            changed = (moved - base).abs().amax(dim=(0, 2, 3)) > 0
            assert changed.nonzero().flatten().tolist() == [unit]


def test_by_unit__groups_run_over_layers_in_order_and_differ_by_one_unit():
    names = [block.name for block in partition("by_unit:5", MODULES["mlp"])]
    assert names == [
        "fc1[0:4]",
        "fc1[4:9]",
        "fc1[9:12]+fc2[0:2]",
        "fc2[2:7]",
        "out",
    ]


def test_by_unit__sizes_that_do_not_match_go_with_the_layer():
    module = nn.Sequential(
        nn.LayerNorm(5), nn.Linear(5, 3), nn.PReLU(), nn.Linear(3, 2)
    )
    blocks = partition("by_unit:4", module)
    # unit 0 takes the scale and shift of the inputs (10) and the slope (1) too
    assert [block.size for block in blocks] == [6 + 10 + 1, 6, 6, 8]


def test_random__seed_is_optional_and_changes_the_blocks():
    module = MODULES["mlp"]
    assert partition("random:4", module) == partition("random:4:0", module)
    assert partition("random:4", module) != partition("random:4:1", module)


def test_custom__patterns_match_whole_names_in_their_order():
    blocks = partition("custom", MODULES["mlp"], patterns=[r"out\..*", r"fc\d\.\w+"])
    assert [block.name for block in blocks] == [r"out\..*", r"fc\d\.\w+"]
    assert [block.size for block in blocks] == [80, 65 * 12 + 13 * 7]


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["fc1.*", "out.*"], "cover every parameter.*`fc2.weight`, `fc2.bias`"),
        (["fc.*", "out.*", ".*bias"], "not overlap.*`fc1.bias`.*`fc.*`"),
        ([".*", "conv"], "'conv', which matches none"),
        (["fc(", "out.*"], "regular expressions"),
        ([], "one pattern a block"),
    ],
)
def test_custom__bad_patterns_name_the_parameters(patterns, message):
    with pytest.raises(ValueError, match=message):
        partition("custom", MODULES["mlp"], patterns=patterns)


@pytest.mark.parametrize(
    "spec",
    [
        "",
        "by_row",
        "by_unit",
        "by_unit:",
        "by_unit:0",
        "by_unit:-3",
        "by_unit:2.5",
        "by_size:3:4",
        "random",
        "random:2:x",
        "by_layer:2",
        "all:1",
        "custom:2",
        "by_size:٣",
    ],
)
def test_parse_spec__bad_specs_name_the_allowed_forms(spec):
    with pytest.raises(ValueError, match=r'"by_unit:N", "by_size:N", "random:N"'):
        parse_spec(spec)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("by_unit:21", "Choose N from 2 to 20"),
        ("by_unit:1", "Choose N from 2 to 20"),
        ("by_size:99999", "at least one parameter a block"),
        ("random:99999", "at least one parameter a block"),
    ],
)
def test_partition__too_many_blocks_say_how_many_there_can_be(spec, message):
    with pytest.raises(ValueError, match=message):
        partition(spec, MODULES["mlp"])


def test_by_unit__single_layer_has_one_block_and_no_weights_is_an_error():
    linear = nn.Linear(3, 2)
    assert [block.size for block in partition("by_unit:1", linear)] == [8]
    with pytest.raises(ValueError, match="N from 1 to 1"):
        partition("by_unit:2", linear)
    with pytest.raises(ValueError, match="weight layer"):
        partition("by_unit:2", nn.LayerNorm(3))


def test_partition__patterns_without_custom_are_refused():
    with pytest.raises(ValueError, match="one pattern a block"):
        partition("all", MODULES["mlp"], patterns=[".*"])


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        ([[0, 1, 2], [2, 3, 4, 5, 6, 7]], "not overlap.*`weight`"),
        ([[0, 1, 2], [3, 4, 5, 6]], "cover every parameter.*`bias`"),
        ([[0, 1, 2, 3, 4, 5, 6, 7], [8]], "block 1"),
        ([[0, 1, 2, 3, 4, 5, 6, 7], []], "no index"),
    ],
)
def test_validate_blocks__names_the_parameters(indices, message):
    blocks = [Block(i, f"b{i}", np.array(ids, int)) for i, ids in enumerate(indices)]
    with pytest.raises(ValueError, match=message):
        validate_blocks(blocks, Layout.from_module(nn.Linear(3, 2)))


def test_join__parts_that_do_not_fit_are_refused():
    blocks = partition("by_size:2", nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"sizes \[4, 4\]"):
        join([torch.zeros(4), torch.zeros(3)], blocks, 8)


def test_block__is_read_only_also_after_pickling_and_does_not_alias():
    given_indices = np.arange(4)
    block = Block(0, "b", given_indices)
    given_indices[0] = 9
    for copy in (block, pickle.loads(pickle.dumps(block))):
        assert copy == block
        assert hash(copy) == hash(block)
        assert copy.indices.tolist() == [0, 1, 2, 3]
        with pytest.raises(ValueError, match="read-only"):
            copy.indices[0] = 1


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.ReLU(), "at least one trainable"),
        (nn.LazyLinear(3), "lazy"),
        (nn.Linear(2, 2, dtype=torch.complex64), "real parameters"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_layout__modules_without_flat_parameters_are_refused(module, message):
    with pytest.raises(ValueError, match=message):
        Layout.from_module(module)
