"""What holds for any rows, any texts, any lengths and any results of a sweep, on examples that Hypothesis draws."""

from __future__ import annotations

import io
import os
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import decoders

from alignlab.data.batching import whole
from alignlab.data.encode import Limits, encode, pair
from alignlab.errors import DataError
from alignlab.models.text import Codec
from alignlab.records import Encoded, EncodedGroup, Example
from alignlab.tables.folders import means, read_results
from alignlab.tables.render import NOTHING, long_csv, sections_of
from alignlab.tables.sweep import Selection, aggregate, difference, read_sweep, table_of
from tests.conftest import CODEC, backbone
from tests.unit.conftest import attached
from tests.unit.data.test_encode import letters, split_of
from tests.unit.made_sweeps import MadeSweep, number
from tests.unit.models.test_text import PLAIN, tokenizer

drawn = partial(settings, deadline=None, derandomize=True, database=None)
words = st.text("abcd", min_size=1, max_size=9)


@drawn(max_examples=60)
@given(st.lists(st.tuples(words, words, words), min_size=1, max_size=6), st.integers(3, 14), st.data())
def test_every_row_is_kept_or_counted_and_no_kept_one_is_too_long(
    rows: list[tuple[str, str, str]], most: int, data: st.DataObject
) -> None:
    too_long = data.draw(st.sampled_from(["drop", "cut_prompt_left", "cut_response"]))
    prompt = data.draw(st.none() | st.integers(2, 9))
    split = split_of(*rows, left_out={"empty": 2})
    by_row = {f"file:{place}": row for place, row in enumerate(rows, start=1)}

    try:
        groups, account = encode(split, pair, letters, Limits(most, too_long, prompt_tokens=prompt))
    except DataError:
        return  # nothing was left; the sentence holds the account

    assert account.read == account.kept + sum(account.dropped.values()) == len(rows) + 2
    assert account.kept == len(groups)
    assert [group.row for group in groups] == sorted(group.row for group in groups)
    for group in groups:
        for member, response in zip(group.members, by_row[group.row][1:], strict=True):
            asked, answered = member.ids[member.head : member.start], member.ids[member.start :]
            assert len(member.ids) <= most
            assert prompt is None or member.start <= prompt
            assert asked
            assert by_row[group.row][0].endswith("".join(map(chr, asked)))
            full = (*map(ord, response), 1)
            assert answered == (full[: len(answered)] if too_long == "cut_response" else full)
            assert answered


def merging() -> Codec:
    """Joins a and b, also across the end of a prompt."""
    joining = tokenizer(merges=[("a", "b")])
    joining.backend_tokenizer.decoder = decoders.Fuse()
    return Codec(joining, PLAIN)


TEXTS = {
    "the toy tokenizer": (CODEC, st.text(st.characters(exclude_categories=["Cs"]), max_size=12)),
    "a tokenizer that merges": (merging(), st.text("abcd ", max_size=12)),
}


@pytest.mark.parametrize("name", TEXTS)
@drawn(max_examples=80)
@given(st.data())
def test_a_text_becomes_ids_and_the_same_text_again(name: str, data: st.DataObject) -> None:
    codec, texts = TEXTS[name]
    prompt, response = data.draw(texts), data.draw(texts.filter(str.strip))

    (encoded,) = codec.examples([Example(prompt, response)], ["row"])
    (asked,) = codec.prompts([prompt])

    assert encoded.ids[: encoded.start] == asked
    assert encoded.ids.count(codec.eos) == 1
    assert encoded.ids[-1] == codec.eos
    assert codec.decode(encoded.ids) == codec.written(prompt) + response
    answer = codec.continuation(asked, encoded.ids[encoded.start :])
    assert codec.answer(prompt, answer) == response


ids = st.lists(st.integers(3, 300), min_size=1, max_size=11).map(tuple)


@st.composite
def batches(draw: st.DrawFn) -> list[EncodedGroup]:
    """Pairs with a common beginning, of which the responses begin where they part or later."""
    groups = []
    for place in range(draw(st.integers(1, 4))):
        prompt = (1, *draw(ids))
        members = tuple(Encoded((*prompt, *draw(ids)), start=len(prompt)) for _ in range(2))
        groups.append(EncodedGroup(f"pair {place}", members))
    return groups


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_rows_without_padding_give_the_numbers_of_padded_ones(kind: str) -> None:
    packed, padded = (attached("lora", backbone(kind)) for _ in range(2))
    padded.packing = "off"

    @drawn(max_examples=25)
    @given(batches())
    def same(groups: list[EncodedGroup]) -> None:
        batch = whole(groups, CODEC.pad)
        with torch.no_grad():
            one, other = packed.logprobs(batch), padded.logprobs(batch)
        torch.testing.assert_close(one.total_GM, other.total_GM, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(one.mean_GM, other.mean_GM, atol=1e-4, rtol=1e-5)
        assert torch.equal(one.tokens_GM, other.tokens_GM)

    same()


ROWS, SEEDS = ("red", "lora"), (0, 1, 2)
ENDS = ("absent", "missing", "failed", "not measured")
"""How a cell can have no number: its job was never declared, never started, ended with an error, or measured something else."""
cells = st.sampled_from(ENDS) | st.integers(1, 8).map(float)


def made(folder: Path, drawn_cells: dict[tuple[str, int], str | float]) -> MadeSweep:
    """A sweep with these cells; a number is never 0."""
    sweep = MadeSweep(folder, "t")
    does: dict[str, Callable[[str, int], object]] = {
        "absent": lambda *_: None,
        "missing": sweep.job,
        "failed": lambda row, seed: sweep.failed(row, seed, "out of memory"),
        "not measured": lambda row, seed: sweep.done(row, seed, [number("toy/capability", 9.0)]),
    }
    for (row, seed), cell in drawn_cells.items():
        if isinstance(cell, str):
            does[cell](row, seed)
        else:
            sweep.done(row, seed, [number("toy/reward", cell), number("toy/capability", 9.0)])
    return sweep


def test_what_is_missing_is_no_number_and_enters_no_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda _: None)  # hundreds of files that need not outlive the test
    places = [(row, seed) for row in ROWS for seed in SEEDS]
    histories = iter(range(10**6))

    @drawn(max_examples=25)
    @given(st.lists(cells, min_size=len(places), max_size=len(places)))
    def holds(drawn_cells: list[str | float]) -> None:
        folder = tmp_path / str(next(histories))
        by_place = dict(zip(places, drawn_cells, strict=True))
        if all(cell == "absent" for cell in drawn_cells):
            return
        table = table_of(read_sweep(made(folder, by_place).runs, "t"), Selection())
        numbers = {row: {s: c for s in SEEDS if isinstance(c := by_place[row, s], float)} for row in ROWS}
        shown = {
            str(line["row"]): line for section in sections_of(table, None, folder) for line in section.cells.to_dict("records")
        }
        written = pd.read_csv(io.StringIO(long_csv(table, None)))
        for row in table.rows:
            own = numbers[row.row]
            found, compared = aggregate(row, "toy/reward"), difference(table, row, "toy/reward")
            paired = sorted(own.keys() & numbers[table.baseline].keys()) if row.row != table.baseline else []
            line = written[(written["row"] == row.row) & (written["metric"] == "reward")]
            cell = str(shown[row.row].get("reward", NOTHING))
            assert (found is None) == (not own)
            assert (compared is None) == (not paired)
            if found is None:
                assert cell == NOTHING or cell.split(",")[0] in ("missing", "failed", "not measured") or cell.startswith("0/")
                assert line["mean"].isna().all()
                continue
            assert found.mean == pytest.approx(statistics.fmean(own.values()))
            assert found.seeds == len(own)
            assert cell.startswith(f"{found.mean:.3f}")
            assert line["mean"].tolist() == pytest.approx([found.mean])
            if compared is not None:
                wanted = statistics.fmean(own[seed] - numbers[table.baseline][seed] for seed in paired)
                assert compared.value == pytest.approx(wanted)
        if any(numbers.values()):
            frame = means(read_results(folder))
            of_reward = frame[frame["metric"] == "reward"]
            assert (of_reward["mean"] != 0).all()
            assert int(of_reward["seeds"].sum()) == sum(map(len, numbers.values()))

    holds()
