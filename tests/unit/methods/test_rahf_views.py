"""How RAHF sees a record: one response behind several prefixes, all else being the same ids."""

from __future__ import annotations

import pytest

from alignlab.assembly import build_policy
from alignlab.data.batching import whole
from alignlab.data.encode import encode
from alignlab.data.source import Split
from alignlab.methods.rahf.views import Beside, Instructed
from alignlab.models.controls import led
from alignlab.records import Example, Group, Preference, Response
from alignlab.training.stages import Window
from tests.conftest import CODEC
from tests.unit.methods.readings import BETTER, LEADS, LIMITS, RECORDS, WORSE, batch_of, groups_of
from tests.unit.methods.small_runs import HIR, planned

BOTH = Preference.pair("row", "p", "good one", "bad one")
INSTRUCTED = Instructed("+", "-")
NO_PAIRS = [
    Preference("row", "p", (Response("only", label="chosen"),)),
    Preference("row", "p", (Response("only", label="rejected"),)),
    Preference("row", "p", (Response("only"),)),
    Preference("row", "p", (Response("one", label="good"), Response("other", label="bad"))),
]


def test_each_response_stands_behind_the_prefix_that_fits_it_and_then_behind_the_other() -> None:
    assert INSTRUCTED(BOTH) == (
        Group("row/0", (Example("p", "good one", lead="+"), Example("p", "good one", lead="-"))),
        Group("row/1", (Example("p", "bad one", lead="-"), Example("p", "bad one", lead="+"))),
    )


def test_without_a_coin_each_response_stands_behind_every_lead() -> None:
    assert Beside(("", "+", "-"), None)(BOTH) == (
        Group("row/0", tuple(Example("p", "good one", lead=lead) for lead in ("", "+", "-"))),
        Group("row/1", tuple(Example("p", "bad one", lead=lead) for lead in ("", "+", "-"))),
    )


@pytest.mark.parametrize("view", [INSTRUCTED, Beside(("",), None), Beside(("", "+", "-"), 42)])
def test_the_order_of_the_responses_in_the_record_has_no_say(view: Instructed | Beside) -> None:
    turned = Preference("row", "p", tuple(reversed(BOTH.responses)))

    assert view(turned) == view(BOTH)


@pytest.mark.parametrize("record", NO_PAIRS)
@pytest.mark.parametrize("view", [INSTRUCTED, Beside(("",), None), Beside(("", "+", "-"), 42)])
def test_what_is_no_pair_has_nothing_for_them(view: Instructed | Beside, record: Preference) -> None:
    assert view(record) == ()


def tossed(seed: int, rows: range = range(2000)) -> dict[str, str]:
    """The response that the coin takes of each row."""
    view = Beside(("",), seed)
    groups = {row: view(Preference.pair(f"row {row}", "p", "chosen", "rejected")) for row in rows}
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
        assert better.ids == (plain.ids[0], *CODEC.lead(BETTER), *plain.ids[1:])
        assert worse.ids == (plain.ids[0], *CODEC.lead(WORSE), *plain.ids[1:])
        assert len({member.start - member.head for member in group.members}) == 1
    assert len(CODEC.lead(BETTER)) > len(CODEC.lead(WORSE)) > 0
    assert len(groups) == 2 * len(RECORDS)


def test_a_batch_shares_bos_alone_between_its_prefixes() -> None:
    assert batch_of().prefix_G.tolist() == [1] * 8


@pytest.mark.parametrize("leads", [LEADS, ("",), (BETTER,)])
def test_an_over_long_prompt_is_cut_in_the_query_and_keeps_its_reply_tag(leads: tuple[str, ...]) -> None:
    tag = CODEC.lead("\n")  # of this template
    uncut = groups_of(leads)
    longest = max(member.start for group in uncut for member in group.members)

    cut, account = encode(Split(RECORDS), Beside(leads, None), CODEC.examples, Window(longest - 3)(LIMITS))

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
    policy = build_policy(config.model, config.tuner, plan.control, start="random", seed=0, device="cpu", packing="pairs")
    controls, codec = policy.knob.controls, policy.backbone.codec
    assert controls is not None
    (plain, *_), _ = encode(plan.source.split("train"), Beside(("",), None), codec.examples, LIMITS)

    unled = whole([plain], codec.pad)
    good, bad = (led(unled, [controls.leads[controls.number(name)]]) for name in ("good", "bad"))

    (trained, *_) = plan.works[0].groups  # the chosen response, behind the good prefix and behind the bad one
    assert [tuple(each.ids_GMT[0, 0].tolist()) for each in (good, bad)] == [member.ids for member in trained.members]
    assert [int(each.start_GM) for each in (good, bad)] == [member.start for member in trained.members]
    leads = [f"{text}\n\n" for text in (config.data.prefixes.better, config.data.prefixes.worse)]
    assert [lead.ids for lead in controls.leads] == [codec.lead(lead) for lead in leads]
