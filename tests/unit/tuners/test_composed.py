"""Two adapters in one backbone, each at its own strength: as each is alone, and as edits made by hand."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor

from alignlab.errors import ControlError, ModelError
from alignlab.models.policy import Policy
from alignlab.models.sampling import Sampling
from alignlab.tuners import TUNERS, composed
from alignlab.tuners.at_strength import at_strength
from alignlab.tuners.composed import compose
from alignlab.tuners.config import PromptTunerConfig
from tests.conftest import backbone
from tests.unit.conftest import PAIRS, Heard, attached, batch_of

SPREADS = {"red": 0.1, "other": 0.2, "lora": 0.1, "clm": 0.05, "ia3": 0.1, "full": 0.1}
"""How far each adapter's numbers are from the identity."""
TUNER = {"other": "red"}
"""The tuner of an adapter whose name is another."""
PROMPTS = [prompt for prompt, _, _ in PAIRS[:2]]
GREEDY = Sampling(8, 0.0, 1.0)


def alone(name: str, kind: str = "llama") -> Policy:
    """An adapter on a copy of the backbone."""
    return attached(TUNER.get(name, name), backbone(kind), spread=SPREADS[name])


def both(*names: str, kind: str = "llama") -> Policy:
    return compose({name: alone(name, kind) for name in names})


def totals(policy: Policy, strength: Any) -> Tensor:
    with torch.no_grad(), policy.at(strength):
        return policy.logprobs(batch_of(policy.backbone)).total_GM


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (("red", "lora"), "llama"),
        (("lora", "red"), "gpt2"),
        (("red", "other"), "llama"),
        (("clm", "red"), "llama"),
        (("red", "clm"), "gpt2"),
        (("ia3", "red"), "llama"),
    ],
)
def test_with_one_at_0_the_other_is_as_it_is_alone(names: tuple[str, str], kind: str) -> None:
    policy = both(*names, kind=kind)

    for place, name in enumerate(names):
        asked = {names[place]: 1.5, names[1 - place]: 0.0}
        torch.testing.assert_close(totals(policy, asked), totals(alone(name, kind), 1.5), rtol=1e-5, atol=1e-4)
    plain = totals(alone("red", kind), 0.0)
    torch.testing.assert_close(totals(policy, dict.fromkeys(names, 0)), plain, rtol=1e-5, atol=1e-4)
    with policy.off():
        torch.testing.assert_close(policy.logprobs(batch_of(policy.backbone)).total_GM, plain, rtol=1e-5, atol=1e-4)
    assert torch.equal(totals(policy, 1.0), totals(policy, dict.fromkeys(names, 1.0)))


def test_two_edits_of_one_output_are_made_one_after_the_other() -> None:
    policy, plain, ids = both("red", "other"), backbone("llama").model, torch.arange(4, 20)[None]
    edits = [alone(name).tuner.layers for name in ("red", "other")]  # type: ignore[attr-defined]
    for number, block in enumerate(plain.model.layers):

        def edited(_layer: Any, _given: Any, out: Tensor, number: int = number) -> Tensor:
            for strength, layers in zip((0.5, 1.5), edits, strict=True):
                edit = layers[number].red_edit["default"]
                out = (1 + strength * (edit.scale - 1)) * out + strength * edit.shift
            return out

        block.mlp.down_proj.register_forward_hook(edited)

    with torch.no_grad(), policy.tuner.at(policy.tuner.numbered({"red": 0.5, "other": 1.5})[0]):  # type: ignore[attr-defined]
        torch.testing.assert_close(policy.backbone.model(ids).logits, plain(ids).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("names", [("red", "lora"), ("clm", "red")])
def test_rows_of_other_strengths_answer_as_each_alone(names: tuple[str, str]) -> None:
    policy = both(*names)
    asked = [{names[0]: 0.5, names[1]: 1.5}, {names[0]: 1.0, names[1]: -1.0}]

    together = policy.respond(PROMPTS, strength=asked, sampling=GREEDY, seed=0)

    each = [policy.respond([prompt], strength=one, sampling=GREEDY, seed=0) for prompt, one in zip(PROMPTS, asked)]
    assert [[text] for text in together] == each
    torch.testing.assert_close(
        totals(policy, [asked[0], asked[1], asked[0], 1.0])[1], totals(policy, asked[1])[1], rtol=1e-5, atol=1e-4
    )
    ids = torch.tensor(policy.backbone.codec.prompts(PROMPTS[:1]))
    model, heard = cast("Any", policy.model), Heard()
    decoding = at_strength(policy, asked[0], streamer=heard)
    made = model.generate(ids, custom_generate=decoding, do_sample=False, max_new_tokens=8)
    assert torch.cat([put.flatten() for put in heard.put_ids]).tolist() == made[0].tolist()
    assert policy.backbone.codec.decode(made[0, ids.shape[1] :].tolist()).startswith(together[0])


def test_clm_mixes_logits_at_each_strength_of_the_other() -> None:
    policy, ids = both("clm", "red"), torch.arange(4, 20)[None]
    tuner: Any = policy.tuner

    passes = tuner.passes(tuner.numbered({"clm": 0.25, "red": 1.5})[0])

    assert [weighted.weight for weighted in passes] == [0.25, 0.75]
    for weighted, through in zip(passes, (1.0, 0.0), strict=True):
        with torch.no_grad(), tuner.at(weighted.setting):
            found = policy.backbone.model(ids).logits
        with torch.no_grad(), tuner.at(tuner.numbered({"clm": through, "red": 1.5})[0]):
            assert torch.equal(found, policy.backbone.model(ids).logits)


def test_the_weights_are_in_memory_once() -> None:
    policies = {name: alone(name) for name in ("red", "lora")}

    compose(policies)

    one, two = (policy.backbone.model.get_input_embeddings().weight for policy in policies.values())  # type: ignore[operator]
    assert one.data_ptr() == two.data_ptr()


def test_so_many_strengths_as_are_asked_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composed, "MOST", 3)
    tuner: Any = both("red", "lora").tuner

    numbers = [tuner.numbered({"red": strength, "lora": 2.0})[0] for strength in (0.1, 0.2, 0.3, 0.4, 0.4, 0.1)]

    assert numbers == [2, 3, 4, 2, 2, 3]  # the oldest two made room
    assert tuner.numbered(1.0) == [1.0]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (("red", "full"), "full has weights of the backbone in place of an adapter"),
        (("red",), "give several, each by a name of its own"),
    ],
)
def test_what_does_not_compose_is_refused_in_a_sentence(names: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ModelError, match=sentence):
        both(*names)


def test_other_weights_vectors_in_the_text_and_two_that_add_blocks_are_refused() -> None:
    other = alone("red")
    other.backbone.model.get_input_embeddings().weight.data[0] += 1  # type: ignore[operator]
    prompted = backbone("llama")
    config = PromptTunerConfig(name="prompt", likelihood_rate=1.0, preference_rate=1.0, length=2, init="random")
    prompt = Policy(prompted, TUNERS["prompt"].build(config, prompted.model))

    with pytest.raises(ModelError, match="b was trained on other weights than a"):
        compose({"a": alone("red"), "b": other})
    with pytest.raises(ModelError, match="b puts something into the text"):
        compose({"a": alone("red"), "b": prompt})
    with pytest.raises(ModelError, match="a and b both put blocks in front of the first one"):
        compose({"a": alone("clm"), "b": alone("clm")})


@pytest.mark.parametrize("asked", [{"red": 1.0}, {"red": 1.0, "lora": 1.0, "x": 2.0}, {"red": float("inf"), "lora": 1.0}, "1"])
def test_a_strength_that_names_other_adapters_is_refused(asked: Any) -> None:
    with pytest.raises(ControlError, match=r"give one for each of red, lora|not finite|not a number"):
        both("red", "lora").respond(PROMPTS[:1], strength=asked, sampling=GREEDY, seed=0)
