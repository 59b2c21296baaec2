"""The folders of `shared/cases`, each read as its row in their README says: json, csv and pandas say what is right."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, open_dict
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignlab.config import parse
from alignlab.data.batching import whole
from alignlab.data.config import FramedConfig
from alignlab.data.local import jsonl, offers
from alignlab.data.published import ultrafeedback
from alignlab.data.source import Split
from alignlab.errors import DataError
from alignlab.models.backbone import load
from alignlab.models.text import Codec, Template
from alignlab.planning import make_plan
from alignlab.records import Dialogue
from tests.unit.conftest import CONF, plain
from tests.unit.data.forms import config

pytestmark = pytest.mark.real

Told = tuple[str, ...]
"""A prompt and its answers."""
Fields = dict[str, Any]


def last(messages: Sequence[Fields]) -> str:
    return str(messages[-1]["content"])


def plain_pair(row: Fields) -> list[Told]:
    return [(row["prompt"], row["chosen"], row["rejected"])]


def either(row: Fields) -> list[Told]:
    """A pair of texts, or of dialogues, whose prompt ends with the last marker."""
    if "prompt" in row:
        return plain_pair(row)
    marker = "\n\nAssistant:"
    (prompt, chosen), (_, rejected) = (row[side].rsplit(marker, 1) for side in ("chosen", "rejected"))
    return [(prompt + marker, chosen, rejected)]


def turns_as_text(row: Fields) -> list[Told]:
    *opening, _ = row["chosen"]
    system, first, answer, second = (message["content"] for message in opening)
    prompt = f"{system}\n\nHuman: {first}\n\nAssistant: {answer}\n\nHuman: {second}\n\nAssistant: "
    return [(prompt, last(row["chosen"]), last(row["rejected"]))]


READ: dict[str, Callable[[Fields], list[Told]]] = {
    "bom": plain_pair,
    "chat": plain_pair,
    "csv": plain_pair,
    "jsonarray": plain_pair,
    "parquet": plain_pair,
    "prompt_repeated": plain_pair,
    "tooltok": plain_pair,
    "conv_explicit": lambda row: [(last(row["prompt"]), last(row["chosen"]), last(row["rejected"]))],
    "conv_implicit": lambda row: [(row["chosen"][0]["content"], last(row["chosen"]), last(row["rejected"]))],
    "sharegpt_rank": lambda row: [
        (row["conversations"][0]["value"], row["chosen"]["value"], row["rejected"]["value"]),
    ],
    "messages_only": lambda row: [(row["messages"][0]["content"], last(row["messages"]))],
    "alpaca": lambda row: [(row["instruction"], row["output"])],
    "kto_bool": lambda row: [(row["prompt"], row["response"])],
    "kto_completion": lambda row: [(row["prompt"], row["completion"])],
    "renamed": lambda row: [(row["question"], row["answer_chosen"], row["answer_rejected"])],
    "rejected_list": lambda row: [(row["prompt"], row["chosen"], rejected) for rejected in row["rejected"]],
    "system_col": lambda row: [(f"{row['system']}\n\n{row['prompt']}", row["chosen"], row["rejected"])],
    "uf_multiturn": turns_as_text,
    "mix_dialog": either,
    "empty_rejected": lambda row: plain_pair(row) if row["rejected"] else [],
    "identical": lambda row: plain_pair(row) if row["chosen"] != row["rejected"] else [],
}
SETTINGS: dict[str, Fields] = {
    "renamed": {"columns": {"prompt": "question", "chosen": "answer_chosen", "rejected": "answer_rejected"}},
    "empty_rejected": {"unusable_pairs": "drop"},
}
SAME_PAIRS = ("conv_explicit", "conv_implicit", "sharegpt_rank", "renamed", "jsonarray", "parquet")
"""Folders that hold the pairs of `bom` in another form."""
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def cases(shared: Path) -> Path:
    """The folder of small inputs."""
    if not (shared / "cases").is_dir():
        pytest.skip("the small inputs are not here; set ALIGNLAB_SHARED to the folder that holds cases/")
    return shared / "cases"


@pytest.fixture(scope="module")
def compose_on(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., DictConfig]:
    """Composes a run of a method on stories260k and a folder."""
    words = [f"model.path={shared}/models/stories260k", "model.template.format='{prompt}\n'", "model.template.bos=true"]
    words += ["tracking=off", "trainer.device=cpu", "evaluation=off", f"paths.runs={tmp_path_factory.mktemp('runs')}"]

    @cache
    def of(method: str) -> DictConfig:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("run", ["model=local", *words, "data=jsonl", f"method={method}"])

    def composed(folder: Path, method: str) -> DictConfig:
        raw = of(method).copy()
        raw.data.path = str(folder)
        with open_dict(raw.data.columns):
            raw.data.update(SETTINGS.get(folder.name, {}))
        return raw

    return composed


def rows_of(folder: Path, split: str) -> list[Fields]:
    """The rows of a split, by the readers that everybody has."""
    (file,) = folder.glob(f"{split}.*")
    if file.suffix == ".parquet":
        return [{str(key): value for key, value in row.items()} for row in pandas.read_parquet(file).to_dict("records")]
    text = file.read_text(encoding="utf-8-sig")
    if file.suffix == ".csv":
        with file.open(encoding="utf-8", newline="") as opened:
            return list(csv.DictReader(opened))
    return json.loads(text) if file.suffix == ".json" else [json.loads(line) for line in text.splitlines() if line]


def expected(folder: Path, split: str) -> list[Told]:
    return [told for row in rows_of(folder, split) for told in READ[folder.name](row)]


def told(split: Split) -> list[Told]:
    return [(str(record.prompt), *(response.text for response in record.responses)) for record in split.records]


def test_every_folder_has_its_expectation(cases: Path) -> None:
    assert {folder.name for folder in cases.iterdir() if folder.is_dir()} == set(READ)


@pytest.mark.parametrize("name", READ)
def test_a_folder_is_read_row_by_row_with_every_row_accounted_for(cases: Path, name: str) -> None:
    source = jsonl(config(cases / name, **SETTINGS.get(name, {})))

    for split in ("train", "test"):
        found, rows = source.split(split), rows_of(cases / name, split)
        assert told(found) == expected(cases / name, split)
        assert found.read == len(rows) == len({r.row.partition("/")[0] for r in found.records}) + sum(found.left_out.values())


@pytest.mark.parametrize("name", SAME_PAIRS)
def test_pairs_in_other_forms_are_those_of_plain_texts(cases: Path, name: str) -> None:
    made = set(told(jsonl(config(cases / name, **SETTINGS.get(name, {}))).split("train")))

    assert set(told(jsonl(config(cases / "bom")).split("train"))) <= made


def test_pairs_without_an_answer_and_of_equal_answers_are_counted(cases: Path) -> None:
    empty = sum(not row["rejected"] for row in rows_of(cases / "empty_rejected", "train"))
    same = sum(row["chosen"] == row["rejected"] for row in rows_of(cases / "identical", "train"))

    dropped = jsonl(config(cases / "empty_rejected", unusable_pairs="drop")).split("train").left_out
    equal = jsonl(config(cases / "identical")).split("train").left_out

    assert (empty, same) == (3, 3)
    assert dropped == {"an answer is empty": empty}
    assert equal == {"both answers are the same": same}
    with pytest.raises(DataError, match=r"^train\.jsonl:1: 'rejected' is empty"):
        jsonl(config(cases / "empty_rejected")).split("train")


def test_a_repeated_prompt_is_counted_or_cut(cases: Path) -> None:
    folder = cases / "prompt_repeated"
    cut = [
        (row["prompt"], *(row[side].removeprefix(row["prompt"]).lstrip() for side in ("chosen", "rejected")))
        for row in rows_of(folder, "train")
    ]

    kept, without = (jsonl(config(folder, repeated_prompt=what)).split("train") for what in ("keep", "cut"))

    assert kept.notes["answers that repeat their prompt"] == len(cut)
    assert told(without) == cut
    assert without.notes["answers whose repeated prompt was cut"] == len(cut)


@pytest.mark.parametrize("name", ["kto_bool", "kto_completion"])
def test_true_and_false_are_good_and_bad(cases: Path, name: str) -> None:
    records = jsonl(config(cases / name)).split("train").records

    labels = [record.responses[0].label for record in records]
    assert labels == ["good" if row["label"] else "bad" for row in rows_of(cases / name, "train")]
    assert offers(config(cases / name)) == {"chosen", "labels"}


def test_refusals_and_plans_name_the_columns(cases: Path) -> None:
    origin = jsonl(config(cases / "uf_multiturn")).split("train").origin

    assert origin is not None
    assert (origin.used, origin.unused) == (("prompt", "chosen", "rejected"), ("prompt_id",))
    with pytest.raises(DataError, match="the line has question, answer_chosen, answer_rejected"):
        jsonl(config(cases / "renamed")).split("train")


@pytest.mark.parametrize("name", ["uf_multiturn", "system_col"])
def test_every_turn_reaches_the_chat_template(cases: Path, shared: Path, name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260k")
    tokenizer.chat_template = CHATML
    codec = Codec(tokenizer, Template("{prompt}", chat=True, bos=False))
    rows = rows_of(cases / name, "train")

    prompts = [record.prompt for record in jsonl(config(cases / name)).split("train").records]

    messages = [
        row["chosen"][:-1]
        if name == "uf_multiturn"
        else [{"role": "system", "content": row["system"]}, {"role": "user", "content": row["prompt"]}]
        for row in rows
    ]
    texts = [tokenizer.apply_chat_template(each, tokenize=False, add_generation_prompt=True) for each in messages]
    assert all(isinstance(prompt, Dialogue) for prompt in prompts)
    assert [codec.written(prompt) for prompt in prompts] == texts
    assert codec.prompts(prompts) == [tuple(tokenizer(text, add_special_tokens=False).input_ids) for text in texts]


def test_ultrafeedback_has_every_turn_of_its_conversations(cases: Path) -> None:
    folder = cases / "uf_multiturn"
    own = {key: value for key, value in vars(config(folder)).items() if key in FramedConfig.__dataclass_fields__}
    framed = FramedConfig(
        **own, hub="", revision=None, records=None, frame="Q: {prompt}\nA: ", train_split="train", test_split="test"
    )

    split = ultrafeedback(framed).split("train")

    for record, row in zip(split.records, rows_of(folder, "train"), strict=True):
        assert isinstance(record.prompt, Dialogue)
        assert [(turn.role, turn.text) for turn in record.prompt.turns] == [
            (message["role"], message["content"]) for message in row["chosen"][:-1]
        ]
    assert split.left_out == {}


def told_by(name: str, row: Fields) -> list[Told]:
    """What a method trains on: an answer that is labelled false is none."""
    return READ[name](row) if row.get("label", True) else []


SINGLE = ("messages_only", "alpaca", "kto_bool", "kto_completion")


@pytest.mark.parametrize("name", [name for name in READ if name not in ("chat", "tooltok")])
def test_a_plan_has_the_ids_of_a_plain_tokenizer_and_counts_every_row(
    cases: Path, shared: Path, compose_on: Callable[..., DictConfig], name: str
) -> None:
    plan = make_plan(parse(compose_on(cases / name, "sft" if name in SINGLE else "dpo")))

    tokenizer = AutoTokenizer.from_pretrained(shared / "models" / "stories260k")
    rows = rows_of(cases / name, "train")
    texts = [told for row in rows for told in told_by(name, row)]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    ids = [
        [[bos, *tokenizer(f"{prompt}\n{answer}", add_special_tokens=False).input_ids, eos] for answer in answers]
        for prompt, *answers in texts
    ]
    (work,) = plan.works
    assert [[list(member.ids) for member in group.members] for group in work.groups] == ids
    assert (work.account.read, work.account.kept) == (len(rows), len(texts))
    assert sum(work.account.dropped.values()) == sum(not told_by(name, row) for row in rows)


def test_log_probabilities_are_those_of_plain_transformers(
    cases: Path, shared: Path, compose_on: Callable[..., DictConfig]
) -> None:
    plan = make_plan(parse(compose_on(cases / "conv_implicit", "dpo")))
    policy = plain(load(plan.config.model, start="pretrained", seed=0, device="cpu"))
    model = AutoModelForCausalLM.from_pretrained(shared / "models" / "stories260k").eval()
    groups = plan.works[0].groups[:4]

    with torch.no_grad():
        scores = policy.logprobs(whole(groups, policy.backbone.codec.pad))
        for group, total_M in zip(groups, scores.total_GM, strict=True):
            for member, total in zip(group.members, total_M, strict=True):
                ids = torch.tensor([member.ids])
                logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])
                torch.testing.assert_close(total, logprobs[member.start - 1 :].sum(), atol=1e-4, rtol=1e-5)


def test_a_token_that_the_embedding_has_no_row_for_is_named(
    cases: Path, shared: Path, compose_on: Callable[..., DictConfig], tmp_path: Path
) -> None:
    shutil.copytree(shared / "models" / "stories260k", tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.add_tokens(["<tool>"])
    tokenizer.save_pretrained(tmp_path / "model")

    raw = compose_on(cases / "tooltok", "dpo")
    raw.model.path = str(tmp_path / "model")

    with pytest.raises(DataError, match=r"^train\.jsonl:1: holds the token '▁?<tool>' \(id 512\), but .* 512 rows; take"):
        make_plan(parse(raw))
