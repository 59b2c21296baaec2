"""Layers of a backbone: which numbers a config means, and that they are transformers' own hidden states."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from alignlab.errors import ConfigError
from alignlab.models.anatomy import block_list, shape_of
from alignlab.models.backbone import Backbone
from alignlab.models.config import Shape
from alignlab.models.packing import member_of_tokens
from alignlab.records import Batch
from alignlab.tuners.config import LayersConfig
from tests.conftest import backbone

SCIT, DUAL = [0.31, 0.56], [0.31, 0.625]
every_backbone = pytest.mark.parametrize("kind", ["llama", "gpt2"])
IDS = torch.arange(3, 19).reshape(2, 8)


def by_depth(*depth: float, blocks: int) -> list[int]:
    """The layers between two shares of the depth."""
    return LayersConfig(None, list(depth)).of(Shape(blocks, 32))


def numbered(*numbers: int, blocks: int = 32) -> list[int]:
    """The layers of a config that numbers them."""
    return LayersConfig(list(numbers), SCIT).of(Shape(blocks, 32))


def read(made: Backbone, layers: Sequence[int]) -> dict[int, Tensor]:
    """What a pass over the ids leaves of some layers."""
    with torch.no_grad(), made.reading(layers) as kept:
        made.trunk(IDS)
    return kept


def listed(made: Backbone) -> tuple[Tensor, ...]:
    """The hidden states that transformers lists for the same ids."""
    with torch.no_grad():
        found: tuple[Tensor, ...] = made.model(IDS, output_hidden_states=True).hidden_states
    return found


def keeping(kept: list[Tensor]) -> Callable[..., None]:
    return lambda _module, _inputs, output: kept.append(output if isinstance(output, Tensor) else output[0])


@pytest.mark.parametrize(
    ("depth", "layers"), [(SCIT, [10, 12, 14, 16, 18]), (DUAL, [10, 12, 14, 16, 18, 20])], ids=["scit", "dual"]
)
def test_of_32_blocks_they_are_those_of_the_official_code(depth: list[float], layers: list[int]) -> None:
    assert by_depth(*depth, blocks=32) == layers


@pytest.mark.parametrize(
    ("blocks", "layers"),
    [
        (4, [1, 2]),  # 1.24 to 2.24
        (8, [2, 3, 4]),  # 2.48 to 4.48
        (15, [5, 6, 7, 8]),  # 4.65 to 8.4
        (16, [5, 7, 9]),  # 4.96 to 8.96
        (2, [1]),  # 0.62 to 1.12
    ],
)
def test_every_second_one_is_left_out_from_16_blocks_on(blocks: int, layers: list[int]) -> None:
    assert by_depth(*SCIT, blocks=blocks) == layers


def test_a_share_of_the_depth_reaches_neither_the_embeddings_nor_the_last_layer() -> None:
    assert by_depth(0.0, 0.99, blocks=4) == [1, 2, 3]


def test_numbers_come_in_rising_order() -> None:
    assert numbered(18, 10, 31, 1) == [1, 10, 18, 31]


@pytest.mark.parametrize("number", [32, 33, 0, -1])
def test_the_last_layer_and_those_outside_are_refused(number: int) -> None:
    with pytest.raises(ConfigError, match=rf"layer {number} of layers .* does not fit 32 blocks; choose 1 to 31\."):
        numbered(10, number)


@pytest.mark.parametrize("numbers", [None, [1]])
def test_a_backbone_of_a_single_block_has_no_layer_to_choose(numbers: list[int] | None) -> None:
    with pytest.raises(ConfigError, match="this backbone has a single block; take a deeper one"):
        LayersConfig(numbers, SCIT).of(Shape(1, 32))


@pytest.mark.parametrize("numbers", [[], [10, 12, 10]])
def test_no_layer_and_the_same_layer_twice_are_refused(numbers: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"where\.numbers=.* must name at least one layer, each once; or null"):
        LayersConfig(numbers, SCIT).check("where")


@pytest.mark.parametrize("depth", [[0.5], [0.1, 0.2, 0.3], [0.6, 0.5], [-0.1, 0.5], [0.5, 1.0], [float("nan"), 0.5]])
def test_a_depth_that_is_no_interval_is_refused(depth: list[float]) -> None:
    with pytest.raises(ConfigError, match=r"where\.depth=.* must be two shares of the depth, \[from, to\]"):
        LayersConfig(None, depth).check("where")


@every_backbone
def test_the_shape_is_counted_on_the_model(kind: str) -> None:
    made = backbone(kind)

    assert made.shape == shape_of(made.model) == Shape(3, 32)


@every_backbone
def test_layer_l_is_the_hidden_state_l_of_transformers_below_the_last(kind: str) -> None:
    made = backbone(kind)

    states = read(made, [1, 2])

    assert all(torch.equal(states[layer], listed(made)[layer]) for layer in (1, 2))


@every_backbone
def test_at_the_last_layer_transformers_list_stands_behind_the_final_norm(kind: str) -> None:
    made = backbone(kind)
    norm = {"llama": "norm", "gpt2": "ln_f"}[kind]

    last = read(made, [3])[3]

    assert not torch.allclose(last, listed(made)[3], atol=1e-2)
    assert torch.equal(made.trunk.get_submodule(norm)(last), listed(made)[3])


@every_backbone
def test_a_pass_that_stops_early_leaves_the_states_of_a_full_one(kind: str) -> None:
    made = backbone(kind)
    full: list[Tensor] = []
    for block in block_list(made.trunk)[1][:2]:
        block.register_forward_hook(keeping(full))
    with torch.no_grad():
        made.trunk(IDS)
    first, second = full

    states = read(made, [2, 1])

    assert torch.equal(states[1], first)
    assert torch.equal(states[2], second)


def test_after_an_error_the_model_is_whole_again_and_holds_no_hook(llama: Backbone) -> None:
    before = llama.model(IDS).logits

    with pytest.raises(ZeroDivisionError), llama.reading([1]):
        raise ZeroDivisionError

    assert torch.equal(llama.model(IDS).logits, before)
    assert not any(module._forward_hooks for module in llama.model.modules())


def test_each_response_token_has_the_number_of_its_member() -> None:
    lengths, starts = torch.tensor([[5, 4], [3, 6]]), torch.tensor([[3, 2], [2, 3]])
    batch = Batch(torch.zeros(2, 2, 6, dtype=torch.long), lengths, starts, torch.tensor([1, 1]), ("a", "b"), 2, 8)

    # Response tokens: 2 and 2 in the first group, 1 and 3 in the second.
    assert member_of_tokens(batch).tolist() == [0, 0, 1, 1, 0, 1, 1, 1]


def test_a_first_token_that_nothing_predicts_is_no_response_token() -> None:
    lengths, starts = torch.tensor([[3, 2]]), torch.tensor([[0, 0]])
    batch = Batch(torch.zeros(1, 2, 3, dtype=torch.long), lengths, starts, torch.tensor([0]), ("a",), 1, 3)

    assert member_of_tokens(batch).tolist() == [0, 0, 1]


def test_one_member_keeps_the_sizes_of_the_whole_step_and_loses_the_others_padding() -> None:
    ids = torch.tensor([[[1, 2, 3, 0], [1, 9, 2, 3]], [[1, 4, 0, 0], [1, 9, 4, 0]]])
    lengths, starts = torch.tensor([[3, 4], [2, 3]]), torch.tensor([[2, 3], [1, 2]])
    batch = Batch(
        ids, lengths, starts, torch.tensor([1, 1]), ("a", "b"), 5, 40, torch.tensor([[1.0, 2.0], [3.0, 4.0]]), tuple("wxyz")
    )

    one = batch.member(0)

    assert one.ids_GMT.tolist() == [[[1, 2, 3]], [[1, 4, 0]]]
    assert (one.length_GM.tolist(), one.start_GM.tolist()) == ([[3], [2]], [[2], [1]])
    assert (one.step_groups, one.step_tokens, one.rows) == (5, 40, ("a", "b"))
    assert one.reference_GM is not None
    assert one.reference_GM.tolist() == [[1.0], [3.0]]
    assert one.controls == ("w", "y")
    assert batch.member(1).controls == ("x", "z")
