"""Another model as the reference: which are refused, what its log-probabilities are, and where they are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from alignlab.data.batching import whole
from alignlab.errors import ConfigError
from alignlab.models.backbone import Backbone
from alignlab.records import EncodedGroup
from alignlab.training.references import OtherModel
from alignlab.training.stages import Session, cache_key
from tests.bits import assert_same_bits
from tests.conftest import CODEC, backbone
from tests.unit.conftest import attached, encoded, plain, session_in


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved GPT-2, where the policy is a Llama; both read the toy tokenizer."""
    return saved(backbone("gpt2"), tmp_path / "reference")


def saved(made: Backbone, folder: Path) -> Path:
    made.model.save_pretrained(folder)
    made.codec.tokenizer.save_pretrained(folder)
    return folder


def added(folder: Path, session: Session) -> list[EncodedGroup]:
    policy = attached("lora", backbone("llama"))
    return OtherModel(folder).added(encoded(policy.backbone), policy, session, "fit", [(0, 1), (2, 3)])


def test_rows_get_their_log_probabilities_under_the_other_model(llama: Backbone, folder: Path, tmp_path: Path) -> None:
    groups = added(folder, session_in(tmp_path))

    with torch.no_grad():
        expected = plain(backbone("gpt2")).logprobs(whole(encoded(llama), CODEC.pad)).total_GM
    torch.testing.assert_close(torch.tensor([group.reference for group in groups]), expected, atol=1e-4, rtol=1e-5)


def test_they_are_kept_under_the_content_of_its_weights(folder: Path, tmp_path: Path) -> None:
    session = session_in(tmp_path)
    first = added(folder, session)
    moved = folder.rename(tmp_path / "elsewhere")
    second = added(moved, session)
    other = backbone("gpt2")
    with torch.no_grad():
        next(other.model.parameters()).mul_(2)

    third = added(saved(other, tmp_path / "other"), session)

    assert second == first
    assert third != first
    assert len(list((session.store / "references").iterdir())) == 2


def test_the_policy_is_left_as_it_was(llama: Backbone, folder: Path, tmp_path: Path) -> None:
    policy = attached("lora", llama)
    before = {name: value.clone() for name, value in policy.model.state_dict().items()}

    OtherModel(folder).added(encoded(llama), policy, session_in(tmp_path), "fit", [])

    assert_same_bits(policy.model.state_dict(), before)


def test_other_weights_in_the_same_folder_are_another_stage(folder: Path) -> None:
    before = cache_key(OtherModel(folder))
    saved_again = folder / "model.safetensors"
    saved_again.write_bytes(saved_again.read_bytes() + b" ")

    assert cache_key(OtherModel(folder)) != before


def test_a_model_with_the_same_vocabulary_and_room_passes(llama: Backbone, folder: Path) -> None:
    OtherModel(folder).check(CODEC, encoded(llama))


def test_another_vocabulary_is_refused(llama: Backbone, folder: Path) -> None:
    file = folder / "tokenizer.json"
    written = json.loads(file.read_text())
    written["added_tokens"].append({**written["added_tokens"][0], "id": len(CODEC.tokenizer), "content": "<more>"})
    file.write_text(json.dumps(written))

    with pytest.raises(ConfigError, match=rf"method\.reference=model:{folder} has another vocabulary than the run's model"):
        OtherModel(folder).check(CODEC, encoded(llama))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_positions": 16}, r"reads 16 tokens and pair \d has \d\d"),
        ({"vocab_size": 20}, r"has 20 embeddings and the rows hold the id \d+"),
    ],
)
def test_a_model_that_cannot_read_the_rows_is_refused(
    llama: Backbone, folder: Path, changes: dict[str, int], said: str
) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))

    with pytest.raises(ConfigError, match=rf"method\.reference=model:{folder} {said}; give another model"):
        OtherModel(folder).check(CODEC, encoded(llama))
