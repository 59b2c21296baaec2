"""How RAHF sees a record: one response behind several prefixes, all else being the same ids."""

from __future__ import annotations

import pytest

from alignlab.data.batching import whole
from alignlab.data.encode import Truncation, encode
from alignlab.data.source import Split
from alignlab.methods.rahf.stages import InstructionVariants, PromptVariants
from alignlab.models.strength import insert_prefixes
from alignlab.records import Example, Group, Record, Response
from alignlab.running import build_policy
from tests.conftest import CODEC
from tests.unit.methods.readings import BETTER, LEADS, LIMITS, RECORDS, WORSE, batch_of, groups_of
from tests.unit.methods.small_runs import HIR, planned

BOTH = Record.pair("row", "p", "good one", "bad one")
INSTRUCTED = InstructionVariants("+", "-")
NO_PAIRS = [
    Record("row", "p", (Response("only", label="chosen"),)),
    Record("row", "p", (Response("only", label="rejected"),)),
    Record("row", "p", (Response("only"),)),
    Record("row", "p", (Response("one", label="good"), Response("other", label="bad"))),
]


def test_each_response_stands_behind_the_prefix_that_fits_it_and_then_behind_the_other() -> None:
    assert INSTRUCTED(BOTH) == (
        Group("row/0", (Example("p", "good one", prefix="+"), Example("p", "good one", prefix="-"))),
        Group("row/1", (Example("p", "bad one", prefix="-"), Example("p", "bad one", prefix="+"))),
    )


def test_without_a_coin_each_response_stands_behind_every_lead() -> None:
    assert PromptVariants(("", "+", "-"), None)(BOTH) == (
        Group("row/0", tuple(Example("p", "good one", prefix=prefix) for prefix in ("", "+", "-"))),
        Group("row/1", tuple(Example("p", "bad one", prefix=prefix) for prefix in ("", "+", "-"))),
    )


@pytest.mark.parametrize("view", [INSTRUCTED, PromptVariants(("",), None), PromptVariants(("", "+", "-"), 42)])
def test_the_order_of_the_responses_in_the_record_has_no_say(view: InstructionVariants | PromptVariants) -> None:
    turned = Record("row", "p", tuple(reversed(BOTH.responses)))

    assert view(turned) == view(BOTH)


@pytest.mark.parametrize("record", NO_PAIRS)
@pytest.mark.parametrize("view", [INSTRUCTED, PromptVariants(("",), None), PromptVariants(("", "+", "-"), 42)])
def test_what_is_no_pair_has_nothing_for_them(view: InstructionVariants | PromptVariants, record: Record) -> None:
    assert view(record) == ()


def tossed(seed: int, rows: range = range(2000)) -> dict[str, str]:
    """The response that the coin takes of each row."""
    view = PromptVariants(("",), seed)
    groups = {row: view(Record.pair(f"row {row}", "p", "chosen", "rejected")) for row in rows}
    assert all(len(found) == 1 for found in groups.values())
    return {found[0].row: found[0].members[0].response for found in groups.values()}


def test_the_coin_is_fair_and_a_group_is_named_by_the_response_that_it_took() -> None:
    taken = tossed(42)

    chosen = [row for row, response in taken.items() if response == "chosen"]
    assert len(chosen) == pytest.approx(1000, abs=100)  # 4.5 standard deviations of 22.4
    assert {row.rpartition("/")[2] for row in chosen} == {"0"}
    assert {row.rpartition("/")[2] for row in taken.keys() - set(chosen)} == {"1"}


def test_the_coin_of_a_row_does_not_depend_on_the_other_rows() -> None:
    every = tossed(42)

    assert tossed(42, range(1999, 989, -7)).items() <= every.items()


def test_another_seed_is_another_coin() -> None:
    agreeing = tossed(42).keys() & tossed(43).keys()

    assert len(agreeing) == pytest.approx(1000, abs=100)


def test_members_share_the_ids_of_prompt_and_response_and_answer_from_the_same_one_on() -> None:
    groups = groups_of()

    for group in groups:
        plain, better, worse = group.members
        assert better.ids == (plain.ids[0], *CODEC.prefix(BETTER), *plain.ids[1:])
        assert worse.ids == (plain.ids[0], *CODEC.prefix(WORSE), *plain.ids[1:])
        assert len({member.start - member.head for member in group.members}) == 1
    assert len(CODEC.prefix(BETTER)) > len(CODEC.prefix(WORSE)) > 0
    assert len(groups) == 2 * len(RECORDS)


def test_a_batch_shares_bos_alone_between_its_prefixes() -> None:
    assert batch_of().prefix_G.tolist() == [1] * 8


@pytest.mark.parametrize("prefixes", [LEADS, ("",), (BETTER,)])
def test_an_over_long_prompt_is_cut_in_the_query_and_keeps_its_reply_tag(prefixes: tuple[str, ...]) -> None:
    tag = CODEC.prefix("\n")  # of this template
    uncut = groups_of(prefixes)
    longest = max(member.start for group in uncut for member in group.members)

    cut, account = encode(Split(RECORDS), PromptVariants(prefixes, None), CODEC.examples, Truncation(longest - 3)(LIMITS))

    over = [max(max(member.start for member in group.members) - (longest - 3), 0) for group in uncut]
    assert account.cut == sum(count > 0 for count in over) > 0
    for before, after, count in zip(uncut, cut, over, strict=True):
        for old, new in zip(before.members, after.members, strict=True):
            assert new.ids == old.ids[: old.head] + old.ids[old.head + count :]
            assert new.ids[new.start - len(tag) : new.start] == tag
            assert new.ids[new.start :] == old.ids[old.start :]


def test_hir_is_asked_with_the_very_ids_that_it_was_trained_on() -> None:
    plan = planned(*HIR)
    config = plan.config
    policy = build_policy(
        config.model, config.tuner, plan.control, start="random", seed=0, device="cpu", trainer=config.trainer
    )
    controls, codec = policy.tuner.controls, policy.backbone.codec
    assert controls is not None
    (plain, *_), _ = encode(plan.source.split("train"), PromptVariants(("",), None), codec.examples, LIMITS)

    unled = whole([plain], codec.pad)
    good, bad = (insert_prefixes(unled, [controls.prefixes[controls.number(name)]]) for name in ("good", "bad"))

    (trained, *_) = plan.works[0].groups  # the chosen response, behind the good prefix and behind the bad one
    assert [tuple(each.ids_GMT[0, 0].tolist()) for each in (good, bad)] == [member.ids for member in trained.members]
    assert [int(each.start_GM) for each in (good, bad)] == [member.start for member in trained.members]
    prefixes = [f"{text}\n\n" for text in (config.data.prefixes.better, config.data.prefixes.worse)]
    assert [prefix.ids for prefix in controls.prefixes] == [codec.prefix(prefix) for prefix in prefixes]
