"""Reference log-probabilities: computed once, kept in the store, checked before they are used."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from alignlab.data.batching import whole
from alignlab.models.backbone import Backbone
from alignlab.models.policy import Logprobs, Policy
from alignlab.records import Batch, EncodedGroup
from alignlab.training.references import with_references
from tests.unit.conftest import PAIRS, attached, batch_of, encoded

TEN = PAIRS * 5  # 20 rows: a full computation takes two passes, a check of eight rows one


class Counting(Policy):
    """Counts the rows that go through the model."""

    rows = 0

    def logprobs(self, batch: Batch) -> Logprobs:
        self.rows += len(batch.rows)
        return super().logprobs(batch)


@pytest.fixture
def policy(llama: Backbone) -> Counting:
    return Counting(llama, attached("lora", llama).tuner)


def referenced(
    policy: Policy, store: Path, pairs: Sequence[tuple[str, str, str]] = TEN, weights: str = "w"
) -> list[EncodedGroup]:
    return with_references(encoded(policy.backbone, pairs), policy, store, weights=weights, inside=policy.off())


def files_of(store: Path) -> list[Path]:
    return sorted((store / "references").iterdir())


def test_every_member_gets_its_log_probability_under_the_reference(policy: Counting, tmp_path: Path) -> None:
    groups = referenced(policy, tmp_path, PAIRS)

    with policy.off():
        expected = policy.logprobs(batch_of(policy.backbone)).total_GM
    torch.testing.assert_close(torch.tensor([group.reference for group in groups]), expected, atol=1e-4, rtol=1e-5)


def test_groups_keep_their_order_and_their_ids(policy: Counting, tmp_path: Path) -> None:
    groups = referenced(policy, tmp_path)

    assert [(group.row, group.members) for group in groups] == [(g.row, g.members) for g in encoded(policy.backbone, TEN)]


def test_a_second_call_reads_the_store_and_checks_eight_rows(policy: Counting, tmp_path: Path) -> None:
    first = referenced(policy, tmp_path)
    computed, policy.rows = policy.rows, 0

    second = referenced(policy, tmp_path)

    assert (computed, policy.rows) == (20, 8)
    assert second == first


def test_values_that_disagree_are_computed_again_and_replaced(policy: Counting, tmp_path: Path) -> None:
    first = referenced(policy, tmp_path)
    (path,) = files_of(tmp_path)
    changed = load_file(path)["total_NM"] + 0.01
    save_file({"total_NM": changed}, path, {"sha256": hashlib.sha256(changed.numpy().tobytes()).hexdigest()})

    second = referenced(policy, tmp_path)

    assert second == first
    assert load_file(path)["total_NM"].tolist() == [list(group.reference or ()) for group in first]


@pytest.mark.parametrize("content", [b"", b"not safetensors at all"])
def test_a_file_that_cannot_be_read_is_computed_again_and_replaced(policy: Counting, tmp_path: Path, content: bytes) -> None:
    first = referenced(policy, tmp_path)
    (path,) = files_of(tmp_path)
    path.write_bytes(content)

    second = referenced(policy, tmp_path)

    assert second == first
    assert load_file(path)["total_NM"].shape == (20, 2)


@pytest.mark.parametrize("shape", [(3, 2), (20, 1)])
def test_a_file_of_another_shape_is_computed_again(policy: Counting, tmp_path: Path, shape: tuple[int, int]) -> None:
    first = referenced(policy, tmp_path)
    (path,) = files_of(tmp_path)
    zeros = torch.zeros(shape)
    save_file({"total_NM": zeros}, path, {"sha256": hashlib.sha256(zeros.numpy().tobytes()).hexdigest()})

    second = referenced(policy, tmp_path)

    assert second == first


def test_no_number_is_not_a_number_that_agrees(policy: Counting, tmp_path: Path) -> None:
    first = referenced(policy, tmp_path)
    (path,) = files_of(tmp_path)
    unknown = torch.full((20, 2), torch.nan)
    save_file({"total_NM": unknown}, path, {"sha256": hashlib.sha256(unknown.numpy().tobytes()).hexdigest()})

    second = referenced(policy, tmp_path)

    assert second == first


def test_a_changed_bit_is_noticed_in_a_row_that_is_not_computed_again(policy: Counting, tmp_path: Path) -> None:
    first = referenced(policy, tmp_path)
    (path,) = files_of(tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))

    second = referenced(policy, tmp_path)

    assert second == first
    assert path.read_bytes() == content


def test_other_rounding_and_other_code_have_files_of_their_own(
    policy: Counting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    referenced(policy, tmp_path)

    policy.packing = "off"
    referenced(policy, tmp_path)
    monkeypatch.setattr("alignlab.training.references.code_version", lambda: "other")
    referenced(policy, tmp_path)

    assert len(files_of(tmp_path)) == 3


def test_other_weights_and_other_ids_have_files_of_their_own(policy: Counting, tmp_path: Path) -> None:
    referenced(policy, tmp_path)

    referenced(policy, tmp_path, weights="other")
    referenced(policy, tmp_path, TEN[:-1])
    referenced(policy, tmp_path, tuple(reversed(TEN)))

    assert len(files_of(tmp_path)) == 4


def test_in_float32_the_batches_of_the_training_change_nothing(policy: Counting, tmp_path: Path) -> None:
    groups = encoded(policy.backbone, TEN)

    first = with_references(groups, policy, tmp_path, weights="w", inside=policy.off())
    second = with_references(groups, policy, tmp_path, weights="w", inside=policy.off(), trained_in=[(0, 1)])

    assert second == first
    assert len(files_of(tmp_path)) == 1


def test_below_float32_a_group_is_computed_in_the_batch_that_trains_it_first(policy: Counting, tmp_path: Path) -> None:
    policy.model.to(torch.bfloat16)
    groups = encoded(policy.backbone, TEN)
    batches = [(3, 17, 9), (4, 1), (9, 3)]

    referenced = with_references(groups, policy, tmp_path, weights="w", inside=policy.off(), trained_in=batches)
    again = with_references(groups, policy, tmp_path, weights="w", inside=policy.off(), trained_in=batches)
    with_references(groups, policy, tmp_path, weights="w", inside=policy.off(), trained_in=batches[:1])
    policy.packing = "off"
    with_references(groups, policy, tmp_path, weights="w", inside=policy.off(), trained_in=batches)
    policy.packing = "pairs"

    with policy.off(), torch.no_grad():
        expected = policy.logprobs(whole([groups[row] for row in batches[0]], policy.backbone.codec.pad)).total_GM
    assert torch.equal(torch.tensor([referenced[row].reference for row in batches[0]]), expected.float())
    assert {row for row, group in enumerate(referenced) if group.reference is not None} == {1, 3, 4, 9, 17}
    assert again == referenced
    assert len(files_of(tmp_path)) == 3  # fewer batches, and rows with padding, round otherwise


def test_nothing_unfinished_is_left_in_the_store(policy: Counting, tmp_path: Path) -> None:
    referenced(policy, tmp_path)

    assert [path.suffix for path in files_of(tmp_path)] == [".safetensors"]


def test_the_policy_may_be_its_own_reference(policy: Counting, tmp_path: Path) -> None:
    groups = with_references(encoded(policy.backbone), policy, tmp_path, weights="w", inside=nullcontext())

    expected = policy.logprobs(batch_of(policy.backbone)).total_GM
    torch.testing.assert_close(torch.tensor([group.reference for group in groups]), expected, atol=1e-4, rtol=1e-5)
