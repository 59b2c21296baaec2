"""Several sources as one: what is drawn from each, in which order, and what is refused in a sentence."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import yaml
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from alignlab.config import parse
from alignlab.data.batching import plan
from alignlab.data.encode import Liked, Limits, encode, pair
from alignlab.data.mixture import in_turn
from alignlab.data.source import LeftOut, Mixing, Source, Split, drawn_from, shares
from alignlab.errors import ConfigError, DataError
from alignlab.planning import Plan, make_plan
from alignlab.records import Encoded, EncodedGroup, Record
from tests.conftest import CODEC
from tests.contracts.test_methods import composed as run_composed

Compose = Callable[..., DictConfig]
TWO = ("data=mixture", "+data@data.sources.a=toy", "+data@data.sources.b=toy", "data.sources.b.world_seed=1")
SIZES = ("data.sources.a.pairs=12", "data.sources.b.pairs=4", "data.sources.a.test_pairs=3", "data.sources.b.test_pairs=5")


def groups(counts: Mapping[str, int], classes: tuple[str | None, ...] = (None,)) -> list[EncodedGroup]:
    """So many groups of each task, of rising lengths, their classes in turn."""
    return [
        EncodedGroup(
            f"{task}/{number}", (Encoded((1,) * (3 + number % 7), 1, control=classes[number % len(classes)]),), task=task
        )
        for task, count in counts.items()
        for number in range(count)
    ]


def drawn(
    made: list[EncodedGroup], weights: Mapping[str, float], steps: int, batch: int, seed: int = 0
) -> list[list[EncodedGroup]]:
    """The groups of each step."""
    found = plan(made, steps=steps, step_groups=batch, micro_groups=batch, seed=seed, weights=weights)
    return [[made[index] for index in share.members] for share in found]


def planned_run(*words: str, method: str = "dpo", data: tuple[str, ...] = (*TWO, *SIZES)) -> Plan:
    """Everything that is known of a run on the embedded model before its weights are loaded."""
    return make_plan(parse(run_composed(Path("nowhere"), method, *words, data=data)))


def tasks(step: list[EncodedGroup]) -> Counter[str | None]:
    return Counter(group.task for group in step)


def test_every_step_has_the_shares_where_they_divide_it() -> None:
    steps = drawn(groups({"a": 30, "b": 7}), {"a": 0.75, "b": 0.25}, steps=40, batch=8)

    assert [tasks(step) for step in steps] == [{"a": 6, "b": 2}] * 40


def test_over_a_training_each_task_is_within_one_of_its_share() -> None:
    weights = {"a": 0.62, "b": 0.27, "c": 0.11}

    steps = drawn(groups({"a": 5, "b": 50, "c": 11}), weights, steps=37, batch=4)

    total = sum((tasks(step) for step in steps), Counter())
    assert all(abs(total[name] - weight * 37 * 4) < 1 for name, weight in weights.items())


def test_no_row_of_a_task_comes_again_before_all_have_come() -> None:
    steps = drawn(groups({"a": 6, "b": 100}), {"a": 0.5, "b": 0.5}, steps=6, batch=4)

    rows = Counter(group.row for step in steps for group in step)
    assert {rows[f"a/{number}"] for number in range(6)} == {2}
    assert max(rows[f"b/{number}"] for number in range(100)) == 1


def test_the_seed_decides_the_order() -> None:
    made = groups({"a": 20, "b": 20})

    first, again, other = (drawn(made, {"a": 0.5, "b": 0.5}, 5, 4, seed=seed) for seed in (0, 0, 1))

    assert first == again != other


def test_classes_of_a_task_are_drawn_in_turn() -> None:
    made = groups({"a": 30, "b": 30}, classes=("good", "bad", "bad"))

    steps = drawn(made, {"a": 0.5, "b": 0.5}, steps=10, batch=8)

    kinds = [Counter((group.task, group.members[0].control) for group in step) for step in steps]
    assert kinds == [{(task, name): 2 for task in "ab" for name in ("good", "bad")}] * 10


@pytest.mark.parametrize(
    ("mixing", "expected"),
    [
        (Mixing(("a", "b"), None, None), {"a": 0.75, "b": 0.25}),
        (Mixing(("a", "b"), None, 6), {"a": 0.6, "b": 0.4}),
        (Mixing(("a", "b"), None, 2), {"a": 0.5, "b": 0.5}),
        (Mixing(("a", "b"), {"b": 3.0, "a": 1.0}, None), {"a": 0.25, "b": 0.75}),
    ],
)
def test_shares_follow_sizes_a_cap_or_the_config(mixing: Mixing, expected: dict[str, float]) -> None:
    assert shares(groups({"a": 12, "b": 4}), mixing) == pytest.approx(expected)
    assert shares(groups({"a": 12}), None) is None


def test_a_task_without_a_row_is_refused() -> None:
    with pytest.raises(DataError, match=r"source b has no row left to train on; give it more data, or leave it out"):
        shares(groups({"a": 3}), Mixing(("a", "b"), None, None))


def test_lists_are_taken_in_turn() -> None:
    assert in_turn([[1, 2, 3, 4], [10], [20, 21]]) == [1, 10, 20, 2, 21, 3, 4]


def source() -> Source:
    """Two tasks; one row of each was left out."""
    records = tuple(Record.pair(f"{task}/{number}", "Tell.", "Good.", "Bad.") for number in range(2) for task in "ab")
    tagged = tuple(Record(each.row, each.prompt, each.responses, each.row[0]) for each in records)
    split = Split(tagged, tuple(LeftOut(f"{task}/9", f"{task}: no answer") for task in "ab"))
    return Source("made", {"train": lambda: split}, mixing=Mixing(("a", "b"), None, None))


def test_a_stage_may_draw_from_one_source_of_several() -> None:
    split, mixing = drawn_from(source(), "train", {"b": 2.0})

    assert [record.row for record in split.records] == ["b/0", "b/1"]
    assert split.left_out == {"b: no answer": 1}
    assert mixing == Mixing(("b",), {"b": 2.0}, None)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"c": 1.0}, "unknown source in the stage's sources 'c'; known: a, b."),
        ({}, "the stage's sources: no source is named; known are a, b."),
        ({"a": 0.0}, "the stage's sources: the weight 0.0 of a must be a finite number above 0."),
    ],
)
def test_a_stage_that_names_what_is_not_there_is_refused(wanted: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError) as info:
        drawn_from(source(), "train", wanted)

    assert str(info.value) == said


def test_a_group_keeps_the_task_of_its_record_and_the_limits_of_its_source() -> None:
    split = source().split("train")
    limits = Limits(100, "error", tasks={"a": (3, "drop")})

    kept, account = encode(split, pair, CODEC.examples, limits)

    assert {group.task for group in kept} == {"b"}
    assert account.dropped["longer than 3 tokens"] == 2


def test_a_run_on_a_mixture_says_what_it_has_of_each() -> None:
    planned = planned_run("data.weights={a: 1, b: 3}")

    (work,) = planned.works
    assert work.weights == {"a": 0.25, "b": 0.75}
    assert tasks(list(work.groups)) == {"a": 12, "b": 4}
    assert planned.held_out is not None
    assert [group.task for group in planned.held_out.groups] == ["a", "b", "a", "b", "a", "b", "b", "b"]
    assert len(planned.source.prompts()) == len(set(planned.source.prompts()))


def test_a_mixture_offers_what_all_of_its_sources_offer(composed: Compose, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"prompt": "Tell.", "chosen": "Good.", "rejected": "Bad."}), encoding="utf-8")
    mixed = ("data=mixture", "+data@data.sources.a=toy", "+data@data.sources.b=jsonl", f"data.sources.b.path={file}")

    config = parse(composed("method=dpo", "evaluation=quick", *mixed))

    assert config.suites == ("preference", "fluency")
    assert config.left_out["toy"] == "needs oracle, which this run does not have"


def test_a_file_behind_any_source_changes_the_fingerprint(composed: Compose, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"prompt": "Tell.", "chosen": "Good.", "rejected": "Bad."}), encoding="utf-8")
    words = ("data=mixture", "+data@data.sources.b=jsonl", f"data.sources.b.path={file}", "evaluation=quick", "method=dpo")
    before = parse(composed(*words)).fingerprint

    file.write_text("\n".join([file.read_text(encoding="utf-8")] * 2), encoding="utf-8")

    assert parse(composed(*words)).fingerprint != before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data.weights={a: 1}"], "data.weights has none for b; give every source one, or null for all."),
        (["data.weights={a: 1, b: 1, c: 1}"], "unknown source in data.weights 'c'; known: a, b."),
        (["data.weights={a: 1, b: 0}"], "data.weights.b=0.0 must be above 0."),
        (["data.weights={a: 1, b: -1}"], "data.weights.b=-1.0 must be above 0."),
        (["data.weights={a: 1, b: nan}"], "data.weights.b=nan must be a finite number, above 0."),
        (["data.weights={a: 1, b: inf}"], "data.weights.b=inf must be a finite number, above 0."),
        (
            ["data.weights={a: 1, b: 1}", "data.cap=3"],
            "data.cap bounds what is mixed by size, and data.weights says the shares",
        ),
        (["data.cap=0"], "data.cap=0 must be at least 1, or null."),
        (["data.limit=5"], "data.limit and data.test_limit belong to the sources; set data.sources.NAME.limit instead."),
        (["+data@data.sources.c=mixture"], "data.sources.c is a mixture itself; name its sources beside the others."),
        (
            ["data.sources.a.flipped=2"],
            "data.sources.a.flipped=2.0 must be at least 0 and at most 1: a share",
        ),
        (["data.sources.a.part=rm"], "data.sources.a: halves and part are made of the whole; set data.halves and data.part."),
        (["+data.sources.c=3"], "data.sources.c is no config; add one with +data@data.sources.c=toy."),
        (["+data.sources.c={name: toys}"], "unknown data 'toys'; did you mean toy or toy_classes?"),
        (["+data.sources.a.colour=red"], "unknown key data.sources.a.colour; did you mean corpus?"),
    ],
)
def test_a_mixture_without_a_meaning_is_refused_before_anything_is_read(composed: Compose, words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as info:
        parse(composed("method=dpo", *TWO, *words))

    assert str(info.value).startswith(said)


def test_a_mixture_of_nothing_is_refused(composed: Compose) -> None:
    with pytest.raises(ConfigError, match=r"data\.sources is empty; add data sets by name: \+data@data\.sources\.NAME=toy"):
        parse(composed("method=dpo", "data=mixture"))


def test_two_tasks_of_one_name_are_refused(composed: Compose) -> None:
    with pytest.raises(HydraException, match=r"data@data\.sources\.a"):
        composed("method=dpo", *TWO, "+data@data.sources.a=jsonl")
    with pytest.raises(yaml.YAMLError, match="found duplicate key a"):
        OmegaConf.create("{a: {name: toy}, a: {name: jsonl}}")


def test_a_source_without_rows_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    unusable = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"}
    file.write_text(json.dumps(unusable), encoding="utf-8")
    words = ("+data@data.sources.c=jsonl", f"data.sources.c.path={file}", "data.sources.c.unusable_pairs=drop")

    with pytest.raises(DataError, match=r"pairs.jsonl: none of 1 rows can be used \(1 prompts of the pair differ\)"):
        planned_run(*words)


def test_a_judge_judges_a_mixture_whose_sources_share_it() -> None:
    assert planned_run().source.judge is not None


def test_weights_add_up_to_one_however_they_are_given() -> None:
    found = shares(groups({"a": 3, "b": 3, "c": 3}), Mixing(("a", "b", "c"), {"a": 1e-3, "b": 1e300, "c": 7.0}, None))

    assert found is not None
    assert math.fsum(found.values()) == pytest.approx(1.0)


def test_an_epoch_of_a_mixture_is_as_many_as_all_have() -> None:
    planned = planned_run("method.fit.steps=null", "method.fit.epochs=1", "method.fit.batch=4", method="sft")

    assert planned.works[0].steps == 4  # 16 rows in steps of 4
    assert planned.method.stages[0].view == Liked()  # type: ignore[attr-defined]
