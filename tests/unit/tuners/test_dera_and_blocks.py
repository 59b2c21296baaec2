"""Two whole models mixed at the logits (DeRa), and some of the backbone's own blocks as the tuner."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from alignlab.errors import ModelError
from alignlab.models.backbone import Backbone
from alignlab.models.decode import Streams
from alignlab.models.policy import Policy
from alignlab.records import Batch
from alignlab.tuners import TUNERS
from tests.conftest import backbone
from tests.unit.conftest import batch_of, learned

every_backbone = pytest.mark.parametrize("kind", ["llama", "gpt2"])
IDS = torch.arange(3, 24).reshape(3, 7)
PREFIX = {"llama": "model.layers.", "gpt2": "transformer.h."}


def policy_of(tuner: str, backbone: Backbone, **settings: Any) -> Policy:
    """A backbone with a new tuner."""
    entry = TUNERS[tuner]
    config = entry.config(name=tuner, likelihood_rate=1e-2, preference_rate=1e-2, **settings)
    return Policy(backbone, entry.build(config, backbone.model))


def moved(kind: str) -> Backbone:
    """The backbone with other numbers."""
    made = backbone(kind)
    generator = torch.Generator().manual_seed(2)
    for parameter in made.model.parameters():
        parameter.data.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return made


def last_logits(model: torch.nn.Module) -> Tensor:
    """Logits behind the last token of three texts."""
    with torch.no_grad():
        return model(IDS).logits[:, -1]


def stepped(policy: Policy, strength: float | Tensor) -> Tensor:
    """The same, at a strength."""
    with torch.no_grad(), Streams(policy.model, policy.tuner, policy.tuner.passes(strength), 3, IDS.device) as streams:
        return streams.step(IDS, torch.ones_like(IDS))


def scores(model: torch.nn.Module, other: torch.nn.Module, strength: float, batch: Batch, row: int) -> Tensor:
    """Log-probability of a row's first response under two models mixed by hand."""
    start, length = int(batch.start_GM[row, 0]), int(batch.length_GM[row, 0])
    ids_1T = batch.ids_GMT[row, :1, :length]
    with torch.no_grad():
        mixed_TV = strength * model(ids_1T).logits[0] + (1 - strength) * other(ids_1T).logits[0]
    return mixed_TV.log_softmax(-1)[:-1].gather(1, ids_1T[0, 1:, None])[start - 1 :].sum()


@pytest.fixture
def aligned(tmp_path: Path) -> str:
    """A folder with a checkpoint of another Llama of the same architecture."""
    moved("llama").model.save_pretrained(tmp_path / "aligned")
    return str(tmp_path / "aligned")


@pytest.mark.parametrize("strength", [-0.5, 0.5, 2.0])
def test_dera_mixes_the_logits_of_two_models(llama: Backbone, aligned: str, strength: float) -> None:
    policy = policy_of("dera", llama, aligned=aligned)

    found = stepped(policy, strength)

    expected = strength * last_logits(moved("llama").model) + (1 - strength) * last_logits(backbone("llama").model)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_at_its_ends_dera_is_one_of_the_models(llama: Backbone, aligned: str) -> None:
    policy = policy_of("dera", llama, aligned=aligned)

    with policy.tuner.at(0.0):
        plain = last_logits(policy.model)

    assert torch.equal(plain, last_logits(backbone("llama").model))
    assert torch.equal(last_logits(policy.model), last_logits(moved("llama").model))


def test_rows_of_one_batch_take_different_strengths_of_dera(llama: Backbone, aligned: str) -> None:
    policy = policy_of("dera", llama, aligned=aligned)
    strength_B = torch.tensor([0.0, 0.5, 1.5])

    together = stepped(policy, strength_B)

    alone = torch.stack([stepped(policy, strength)[row] for row, strength in enumerate(strength_B.tolist())])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_log_probabilities_of_groups_at_different_strengths_are_those_of_the_mixture(llama: Backbone, aligned: str) -> None:
    policy = policy_of("dera", llama, aligned=aligned)
    batch = batch_of(llama)
    strengths = [-0.5, 0.0, 1.0, 2.0]

    with torch.no_grad(), policy.at(torch.tensor(strengths)):
        found = policy.logprobs(batch).total_GM[:, 0]

    models = moved("llama").model, backbone("llama").model
    expected = torch.stack([scores(*models, strength, batch, row) for row, strength in enumerate(strengths)])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_without_a_checkpoint_dera_starts_from_the_backbone_and_learns_every_weight(llama: Backbone) -> None:
    policy = policy_of("dera", llama, aligned=None)

    assert {id(p) for p in learned(policy)} == {id(p) for p in llama.model.parameters()}
    assert torch.equal(stepped(policy, 0.7), stepped(policy, 0.3))


def test_a_checkpoint_of_another_architecture_is_refused(gpt2: Backbone, aligned: str) -> None:
    with pytest.raises(ModelError, match=r"tuner\.aligned=.*aligned has other names or shapes of weights than the backbone"):
        policy_of("dera", gpt2, aligned=aligned)


def test_a_folder_without_a_checkpoint_is_refused(llama: Backbone, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tuner\.aligned=.* could not be loaded \("):
        policy_of("dera", llama, aligned=str(tmp_path))


@pytest.mark.parametrize(
    ("side", "count", "chosen"), [("bottom", 1, [0]), ("bottom", 2, [0, 1]), ("top", 1, [2]), ("top", 3, [0, 1, 2])]
)
@every_backbone
def test_exactly_the_named_blocks_learn(kind: str, side: str, count: int, chosen: list[int]) -> None:
    policy = policy_of("blocks", backbone(kind), side=side, count=count)
    named = {id(parameter): name for name, parameter in policy.model.named_parameters()}

    names = {named[id(parameter)] for parameter in learned(policy)}

    prefixes = tuple(f"{PREFIX[kind]}{index}." for index in chosen)
    assert names == {name for name in named.values() if name.startswith(prefixes)}


def test_the_second_block_is_not_mistaken_for_the_eleventh(llama: Backbone) -> None:
    config = copy.deepcopy(llama.model.config)
    config.num_hidden_layers = 12
    deep = replace(llama, model=LlamaForCausalLM(config).requires_grad_(False))

    policy = policy_of("blocks", deep, side="bottom", count=2)

    blocks = deep.model.model.layers[:2]
    assert {id(parameter) for parameter in learned(policy)} == {id(parameter) for parameter in blocks.parameters()}


def test_more_blocks_than_there_are_is_refused(llama: Backbone) -> None:
    with pytest.raises(ModelError, match=r"tuner\.count=4 is more than the 3 blocks of this backbone"):
        policy_of("blocks", llama, side="top", count=4)
