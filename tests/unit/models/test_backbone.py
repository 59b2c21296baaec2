"""Backbones: loaded from a folder, drawn from a seed, or only counted; and what is refused."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from alignlab import commits
from alignlab.errors import ConfigError, ModelError
from alignlab.models.anatomy import block_list
from alignlab.models.backbone import Backbone, fingerprint, load, load_codec, skeleton
from alignlab.models.config import ModelConfig, TemplateConfig
from alignlab.records import LabelSet
from tests.conftest import backbone
from tests.contracts import kinds
from tests.unit.conftest import checked


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved GPT-2 with its tokenizer, and dropout in its config."""
    made = backbone("gpt2")
    made.model.config.resid_pdrop = 0.1
    made.model.save_pretrained(tmp_path)
    made.codec.tokenizer.save_pretrained(tmp_path)
    return tmp_path


def model_config(path: Path | None, *, bos: bool | None = True, **changes: Any) -> ModelConfig:
    values: dict[str, Any] = {
        "name": "local",
        "kind": "causal",
        "source": "folder",
        "path": path and str(path),
        "revision": None,
        "architecture": None,
        "dtype": "float32",
        "attention": "sdpa",
        "trust_remote_code": False,
        "template": TemplateConfig("{prompt}\n", chat=False, bos=bos, arguments={}),
    }
    return ModelConfig(**{**values, **changes})


def loaded(config: ModelConfig, start: str = "pretrained", seed: int = 0) -> Backbone:
    return load(config, start=start, seed=seed, device="cpu")


def first_weight(made: Backbone) -> torch.Tensor:
    return next(iter(made.model.parameters()))


def change_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **values}), encoding="utf-8")


def test_a_folder_gives_its_weights_frozen_and_in_evaluation_mode(folder: Path) -> None:
    made = loaded(model_config(folder))

    assert torch.equal(first_weight(made), first_weight(backbone("gpt2")))
    assert not any(parameter.requires_grad for parameter in made.model.parameters())
    assert not made.model.training


def test_dropout_is_off_whatever_the_config_says(folder: Path) -> None:
    made = loaded(model_config(folder))

    assert {module.p for module in made.model.modules() if isinstance(module, nn.Dropout)} <= {0.0}


def test_random_weights_are_decided_by_the_seed(folder: Path) -> None:
    first, again, other = (loaded(model_config(folder), "random", seed) for seed in (1, 1, 2))

    assert torch.equal(first_weight(first), first_weight(again))
    assert not torch.equal(first_weight(first), first_weight(other))


def test_a_skeleton_has_every_parameter_and_no_memory(folder: Path) -> None:
    made = skeleton(model_config(folder))

    assert made.num_parameters() == backbone("gpt2").model.num_parameters()
    assert {parameter.device.type for parameter in made.parameters()} == {"meta"}


def test_the_codec_carries_the_template_of_the_config(folder: Path) -> None:
    codec = load_codec(model_config(folder))

    (ids,) = codec.prompts(["Tell a story."])
    assert ids == backbone("gpt2").codec.prompts(["Tell a story."])[0]


def test_without_a_wish_bos_is_added_only_where_the_tokenizer_adds_it(folder: Path) -> None:
    assert load_codec(model_config(folder, bos=None)).head == ()


def test_the_fingerprint_changes_with_weights_dtype_and_a_random_seed(folder: Path) -> None:
    config = model_config(folder)
    before = [
        fingerprint(config, "pretrained", 0),
        fingerprint(replace(config, dtype="bfloat16"), "pretrained", 0),
        fingerprint(config, "random", 0),
        fingerprint(config, "random", 1),
    ]

    (folder / "model.safetensors").touch()
    touched = fingerprint(config, "pretrained", 0)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    after = fingerprint(config, "pretrained", 0)

    assert touched == before[0]
    assert len({*before, after}) == 5
    assert fingerprint(config, "pretrained", 1) == after


def test_weights_other_than_safetensors_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")

    with pytest.raises(ModelError, match=r"holds no \*\.safetensors; convert the weights"):
        loaded(model_config(folder))


def test_a_folder_that_cannot_be_loaded_is_one_sentence_with_its_cause(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "unheard_of"}', encoding="utf-8")

    with pytest.raises(ModelError, match=r"could not be loaded \(.*unheard_of.*\); check the folder\.$") as info:
        loaded(model_config(folder))

    assert "\n" not in str(info.value)
    assert info.value.__cause__ is not None


def test_a_folder_that_is_gone_is_named_with_what_to_do(folder: Path) -> None:
    config = model_config(folder)
    shutil.rmtree(folder)

    with pytest.raises(
        ModelError, match=rf"there is no folder {folder}; give its place in model\.path, or, for a run that was"
    ):
        loaded(config)


def test_a_kind_that_the_model_is_not_is_named_with_those_that_it_is(folder: Path) -> None:
    with pytest.raises(
        ModelError, match=r"is a gpt2, of which there is no model\.kind=seq2seq; take causal, classifier, reward\.$"
    ):
        skeleton(replace(model_config(folder), kind="seq2seq"))


def test_without_the_hub_a_model_that_is_not_here_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(commits, "_unreachable", [])
    asked = Mock(side_effect=ConnectionError("no route\nto it"))
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", asked)
    commits.hub_commit.cache_clear()
    config = replace(model_config(tmp_path), source="hub", path="somebody/model", kind="causal")

    with pytest.raises(ModelError) as info:
        load_codec(config)
    commits.hub_commit.cache_clear()

    assert str(info.value) == (
        f"model={config.name}: not all of somebody/model is on this machine, and the hub cannot be reached (no route);"
        " connect it once, or give a folder with the files: model=local model.path=FOLDER."
    )
    assert asked.call_count == 1


def test_while_layers_are_read_only_the_blocks_up_to_the_highest_are_there(llama: Backbone) -> None:
    name, before = block_list(llama.trunk)

    with llama.reading([1]):
        inside = list(getattr(llama.trunk, name))

    assert inside == [before[0]]
    assert getattr(llama.trunk, name) is before


def test_an_error_while_layers_are_read_leaves_every_block_in_place(llama: Backbone) -> None:
    name, before = block_list(llama.trunk)

    with pytest.raises(RuntimeError), llama.reading([1]):
        raise RuntimeError

    assert getattr(llama.trunk, name) is before
    assert not before[0]._forward_hooks


def test_a_trunk_without_a_list_of_blocks_is_refused(llama: Backbone) -> None:
    name, _ = block_list(llama.trunk)
    delattr(llama.trunk, name)

    with pytest.raises(ModelError, match="a LlamaModel has no list of 3 blocks"):
        block_list(llama.trunk)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"source": "web"}, r"model\.source='web' is not known"),
        ({"dtype": "int8"}, r"model\.dtype='int8' is not known"),
        ({"template": TemplateConfig("{prompt}{prompt}", False, None, {})}, r"must hold \{prompt\} exactly once"),
        ({"path": None}, r"model=local needs model\.path"),
        ({"path": "nowhere"}, r"model\.path=nowhere holds no config\.json"),
    ],
)
def test_a_config_that_cannot_be_loaded_is_refused_early(folder: Path, changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        checked("model", replace(model_config(folder), **changes))


def test_a_tokenizer_with_a_chat_template_is_asked_in_it_unless_the_config_says_otherwise(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}\n{% endfor %}")
    opened, plain = (TemplateConfig("{prompt}\n", chat=chat, bos=None, arguments={}) for chat in (None, False))

    chats = [load_codec(model_config(folder, template=template)).chat for template in (opened, plain)]
    of_an_encoder = load_codec(model_config(folder, template=opened, kind="classifier"), LabelSet(("a", "b"))).chat

    assert chats[0] is not None
    assert (chats[1], of_an_encoder) == (None, None)


def test_a_tokenizer_without_a_chat_template_stays_plain_and_takes_no_arguments(folder: Path) -> None:
    template = TemplateConfig("{prompt}\n", chat=None, bos=None, arguments={})

    assert load_codec(model_config(folder, template=template)).chat is None
    with pytest.raises(ConfigError, match=r"model\.template\.arguments go to a chat template, and model=local has none here"):
        load_codec(model_config(folder, template=replace(template, arguments={"enable_thinking": False})))


def test_a_checkpoint_of_a_chat_model_names_the_end_of_a_turn(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] }}<pad>{% endfor %}")
    template = TemplateConfig("{prompt}\n", chat=None, bos=None, arguments={})

    made = loaded(model_config(folder, template=template))

    assert made.model.generation_config.eos_token_id == [made.codec.eos, made.codec.pad]  # type: ignore[union-attr]
    assert loaded(model_config(folder)).model.generation_config.eos_token_id == made.codec.eos  # type: ignore[union-attr]


def test_another_chat_template_is_another_model(folder: Path) -> None:
    before = model_config(folder).cache_key()

    (folder / "chat_template.jinja").write_text("{{ messages }}")

    assert model_config(folder).cache_key() != before


def test_a_head_of_another_size_than_the_data_has_classes_is_refused(tmp_path: Path) -> None:
    three = kinds.backbone(kinds.CASES[0])
    three.model.save_pretrained(tmp_path)
    config = model_config(tmp_path, kind="classifier")

    with pytest.raises(ModelError, match=r"a head of 3 classes, and the data has 2 \(no, yes\); take a checkpoint without"):
        load(config, start="pretrained", seed=0, device="cpu", labels=LabelSet(("no", "yes")))
