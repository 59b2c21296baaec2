"""The stage that looks without learning: its profile by hand, the states that it keeps, and how many it may keep."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from alignlab.data.encode import Truncation
from alignlab.errors import ConfigError
from alignlab.methods.rahf.stages import PromptVariants
from alignlab.models.config import Shape
from alignlab.models.policy import Policy
from alignlab.records import Batch
from alignlab.training.collect import CollectStage
from alignlab.training.stages import Work
from tests.conftest import CODEC, backbone
from tests.unit.conftest import plain, session_in, trainer_config
from tests.unit.methods.readings import LEADS, LIMITS, PLAIN, SOURCE, layers_of

SHAPE = Shape(3, 32)


@dataclass
class Opened:
    """A store that notes which files it is given."""

    paths: list[Path] = field(default_factory=list)

    def open(self, path: Path) -> None:
        self.paths.append(path)


@dataclass
class Given:
    """A measure that answers for each group with given numbers, the same at all of its tokens."""

    base: dict[str, list[list[float]]]
    shift: dict[str, list[list[float]]]
    batches: list[int] = field(default_factory=list)

    def __call__(self, policy: Policy, batch: Batch, layers: Sequence[int]) -> tuple[Tensor, Tensor]:
        assert not torch.is_grad_enabled()
        self.batches.append(len(batch.rows))
        tokens = (batch.length_GM - batch.start_GM)[:, 0]
        return tuple(  # type: ignore[return-value]
            torch.stack([torch.tensor(values[row]) for row in batch.rows], dim=1).repeat_interleave(tokens, dim=1)
            for values in (self.base, self.shift)
        )


def given(shifts: Sequence[list[list[float]]], base: list[list[float]]) -> Given:
    """Each response of the pairs has a shift of its own, L,D; the base is the same for all."""
    rows = [group.row for group in stage(Given({}, {})).prepare(SOURCE, CODEC, LIMITS).groups]
    return Given(dict.fromkeys(rows, base), dict(zip(rows, shifts, strict=True)))


def stage(measure: Any, *, prefixes: Sequence[str] = PLAIN, sample: int = 99, **changes: Any) -> CollectStage:
    """Both responses of every pair, at layers 1 and 2."""
    view = PromptVariants(tuple(prefixes), None)
    return CollectStage("shift", "train", view, measure, layers_of(1, 2), Truncation(None, 4), sample, **changes)


def profile(made: CollectStage, folder: Path) -> tuple[dict[str, Any], Work]:
    """What a stage leaves, and what it looked at."""
    policy, work = plain(backbone("llama")), made.prepare(SOURCE, CODEC, LIMITS)
    made.run(policy, work, session_in(folder))
    return json.loads((folder / "stages" / "shift" / "profile.json").read_text(encoding="utf-8")), work


def test_the_profile_by_hand(tmp_path: Path) -> None:
    # Eight responses of four tokens each, in two layers. Base 5 long; shifts of 1 and 3 along two axes, or against each other.
    base = [[3.0, 4.0], [0.0, 10.0]]
    shifts = [[[1.0, 0.0], [2.0, 0.0]] if place < 4 else [[0.0, 3.0], [-2.0, 0.0]] for place in range(8)]

    found, _ = profile(stage(given(shifts, base)), tmp_path)

    assert found["title"] == "shift of hidden states (n = 8)"
    assert found["x"] == {"label": "layer", "values": [1, 2]}
    series = found["series"]
    assert series["norm of the shift"] == pytest.approx([2.0, 2.0])
    assert series["ratio to the states"] == pytest.approx([0.4, 0.2])
    # Of the 28 pairs of responses 12 are in the same half: cosine 1; the others are at 90 degrees, or opposed.
    assert series["cosine between items"] == pytest.approx([12 / 28, (12 - 16) / 28])


def test_equal_shifts_have_a_cosine_of_1(tmp_path: Path) -> None:
    found, _ = profile(stage(given([[[0.6, 0.8], [5.0, 0.0]]] * 8, [[1.0, 0.0]] * 2)), tmp_path)

    assert found["series"]["cosine between items"] == pytest.approx([1.0, 1.0])


def test_norms_are_means_over_tokens_and_long_responses_weigh_more(tmp_path: Path) -> None:
    measure = given([[[1.0, 0.0], [1.0, 0.0]]] + [[[0.0, 0.0], [0.0, 0.0]]] * 7, [[1.0, 0.0]] * 2)
    made = replace(stage(measure), truncation=Truncation())

    found, work = profile(made, tmp_path)

    first, every = work.groups[0].response_tokens, sum(group.response_tokens for group in work.groups)
    assert first != every / 8
    assert found["series"]["norm of the shift"] == pytest.approx([first / every] * 2)


def test_the_numbers_are_logged_by_layer(tmp_path: Path) -> None:
    profile(stage(given([[[3.0, 4.0], [0.0, 2.0]]] * 8, [[10.0, 0.0]] * 2)), tmp_path)

    logged = {key: value for entry in session_in(tmp_path).ledger.history() for key, value in entry.items()}
    assert logged["shift/norm_of_the_shift_1"] == pytest.approx(5.0)
    assert logged["shift/norm_of_the_shift_2"] == pytest.approx(2.0)
    assert logged["shift/ratio_to_the_states_2"] == pytest.approx(0.2)
    assert logged["shift/cosine_between_items_1"] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("sample", "rows"), [(2, ["row 0/0", "row 2/0"]), (4, ["row 0/0", "row 1/0", "row 2/0", "row 3/0"]), (99, None)]
)
def test_it_looks_at_groups_from_all_over_the_split_and_says_at_how_many(
    sample: int, rows: list[str] | None, tmp_path: Path
) -> None:
    measure = given([[[1.0, 0.0]] * 2] * 8, [[1.0, 0.0]] * 2)

    found, work = profile(stage(measure, sample=sample), tmp_path)

    expected = rows or [f"row {row}/{side}" for row in range(4) for side in (0, 1)]
    assert [group.row for group in work.groups] == expected
    assert (work.note, work.steps) == (f"looks at {len(expected)} of 8", 0)
    assert (work.account.kept, measure.batches) == (8, [len(expected)])
    assert f"n = {len(expected)}" in found["title"]


def test_a_pass_holds_no_more_groups_than_the_machine_takes_at_once(tmp_path: Path) -> None:
    measure = given([[[1.0, 0.0]] * 2] * 8, [[1.0, 0.0]] * 2)
    made, policy = stage(measure), plain(backbone("llama"))

    made.run(policy, made.prepare(SOURCE, CODEC, LIMITS), session_in(tmp_path, micro_batch=3))

    assert measure.batches == [3, 3, 2]


def test_where_there_is_no_shift_or_a_single_group_there_is_no_cosine(tmp_path: Path) -> None:
    half = given([[[0.0, 0.0], [1.0, 0.0]]] * 8, [[1.0, 0.0]] * 2)

    none, _ = profile(stage(half), tmp_path / "none")
    single, _ = profile(stage(half, sample=1), tmp_path / "single")

    assert none["series"]["cosine between items"] == [None, pytest.approx(1.0)]
    assert single["series"]["cosine between items"] == [None, None]
    logged = {key for entry in session_in(tmp_path / "none").ledger.history() for key in entry}
    assert {key for key in logged if "cosine" in key} == {"shift/cosine_between_items_2"}


def test_it_moves_nothing_and_the_finished_policy_does_not_need_it() -> None:
    made = stage(Given({}, {}))

    assert (made.trains, made.stays) == ({}, False)


def test_with_a_store_the_states_of_every_group_are_kept_by_row(tmp_path: Path) -> None:
    shifts = [[[float(place), 1.0], [0.0, -float(place)]] for place in range(8)]
    store = Opened()

    _, work = profile(stage(given(shifts, [[3.0, 4.0], [0.0, 10.0]]), sample=2, store=store, store_mib=1), tmp_path)

    path = tmp_path / "stages" / "shift" / "states.safetensors"
    kept = load_file(path)
    assert work.note == "keeps the states of 8 of 8"
    assert store.paths == [path]
    assert kept.keys() == {f"{kind}:{group.row}" for kind in ("base", "shift") for group in work.groups}
    for place, group in enumerate(work.groups):
        assert kept[f"shift:{group.row}"].shape == (2, group.response_tokens, 2)
        assert torch.equal(kept[f"shift:{group.row}"][:, 0], torch.tensor(shifts[place]))


def test_a_finished_stage_finds_its_states_again(tmp_path: Path) -> None:
    store = Opened()

    stage(Given({}, {}), store=store).restore(plain(backbone("llama")), tmp_path)
    stage(Given({}, {})).restore(plain(backbone("llama")), tmp_path)

    assert store.paths == [tmp_path / "states.safetensors"]


@pytest.mark.parametrize("prefixes", [PLAIN, LEADS], ids=["one-member", "three-members"])
def test_states_may_take_so_much_and_not_a_number_more(prefixes: tuple[str, ...]) -> None:
    def checked(mib: float) -> None:
        made = stage(Given({}, {}), prefixes=prefixes, store=Opened(), store_mib=mib)
        made.check(made.prepare(SOURCE, CODEC, LIMITS), trainer_config(), SHAPE)

    # Base and shift of 2 layers, 32 wide, 8 responses of 4 tokens, in 4 bytes: 16 KiB whatever the members.
    needed = 2 * 2 * 32 * 8 * 4 * 4 / 2**20
    checked(needed)
    with pytest.raises(ConfigError, match=r"stage shift would keep .* MiB of states, and may keep .*method\.cached=false"):
        checked(math.nextafter(needed, 0))


def test_without_a_store_nothing_is_kept_and_any_size_will_do() -> None:
    made = stage(Given({}, {}), store_mib=0)

    made.check(made.prepare(SOURCE, CODEC, LIMITS), trainer_config(), SHAPE)


def test_layers_outside_the_backbone_are_refused_before_it_runs() -> None:
    made = replace(stage(Given({}, {})), layers=layers_of(1, 3))
    work = made.prepare(SOURCE, CODEC, LIMITS)

    with pytest.raises(ConfigError, match=r"layer 3 of layers \[1, 3\] does not fit 3 blocks"):
        made.check(work, trainer_config(), SHAPE)
