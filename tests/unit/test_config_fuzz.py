"""Mutated configs: each makes a plan that accounts for every row, or is refused in one sentence, and nothing is written."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import omegaconf.base
import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console

from alignlab.command_line import sentence
from alignlab.config import GROUPS, finished, parse
from alignlab.errors import AlignlabError
from alignlab.plan_text import show
from alignlab.planning import make_plan
from tests.fuzzing import examples, fuzzed
from tests.unit.conftest import CONF

WORLD = ("data.pairs=64", "data.test_pairs=4", "data.corpus=64")
COMMON = ("evaluation.prompts=2", "evaluation.pairs=4", "tracking=off", "trainer.device=cpu")
OWN = ("data=jsonl", "data.path=PLACE", "data.train=train*.jsonl", "data.test=test*.jsonl")
TEXTS = ("data.path=PLACE", "data.train=train*.csv", "data.test=test*.csv", "data.test_share=null")
TWO = ("+data@data.sources.a=toy", "+data@data.sources.b=jsonl", *(f"data.sources.a.{word[5:]}" for word in WORLD))
LINES: tuple[tuple[str, ...], ...] = (
    ("method=red", *WORLD),
    ("method=dpo", *WORLD, "trainer=validated", "trainer.validation.share=0.5"),
    ("method=sft", "model=tiny_t5", *WORLD),
    ("method=sft", "model=tiny_roberta", "data=toy_classes", *WORLD),
    ("method=clm", "model=tiny_gpt2", *WORLD),
    ("method=meet", "control=soft_prompt", *WORLD),
    ("method=meet", "control=lora", *WORLD),
    ("method=coh", *WORLD),
    ("method=rahf", *WORLD),
    ("method=rahf", "method.variant=dual", "data.halves={seed: 1, test: null, max_prompt: null}", *WORLD),
    ("method=rahf", "method.variant=hir", "tuner=control", "control=prefixes", *WORLD),
    ("method=pretrain", *WORLD),
    ("method=evaluate", "tuner=lora", "control.strengths=[0.0]", *WORLD),
    ("method=dpo", "tuner=blocks", *OWN),
    ("method=sft", "tuner=ia3", "model=tiny_roberta", "data=text_classification", *TEXTS),
    ("method=dpo", "tuner=bitfit", "model=tiny_gpt2", "launch=slurm", "data=mixture", *TWO, "data.sources.b.path=PLACE"),
    ("method=sft", "tuner=lora_lower", *WORLD, "tracking=wandb", "trainer=fsdp", "evaluation=off"),
    ("method=sft", "tuner=full", *WORLD, "trainer=deepspeed", "evaluation=full", "evaluation.max_new_tokens=8"),
)
"""Between them, every choice of every group that can be planned without the hub, and every kind of embedded model."""
MUTATED = 4000
VALUES = (
    *("0", "-1", "1", "2", "7", "0.5", "-0.5", "1.5", "-0", "08", "0x10", "1_000", "512", "4294967296", "9007199254740993"),
    *("nan", "inf", "-inf", "1e300", "-1e300", "1e-300", "1e400"),
    "1234567890123456789012",
    "1" + "0" * 400,
    *(
        "null",
        "true",
        "'1'",
        "none",
        "all",
        "base",
        "auto",
        "cuda",
        "a",
        "é",
        "\U0001f600",
        "''",
        "' '",
        "'\\n'",
        "'['",
        "'(?P<'",
    ),
    *("[]", "[[]]", "[null]", "[1,1]", "[a,a]", "[toy,toy]", "[0.5,nan]", "[1e300]", "[-1]", "[0,1]", "[[1],[2]]", "[{a: 1}]"),
    *("{}", "{a: 1}", "{a: {b: null}}", "{a: -1}", "'{prompt}'", "'{prompt}{prompt}'", "'{post}'"),
    *("${seed}", "${nowhere}", "${paths.runs}", "${control}", "${.x}", "'${'", "${oc.env:NOT_SET}", "???"),
    *("/dev/null/x", "'../../..'", "'*'", "'a**'", "'" + "x" * 300 + "'", "\udc80"),
)

NEW = ("new", "a.b", "method.x", "data.y", "seed.z", "hydra.q", "trainer.extra.q", "model.template.arguments.q")
FORMS = (
    *["{key}={value}"] * 30,
    "~{key}",
    "+{key}={value}",
    "++{key}={value}",
    "+{key}.new={value}",
    *(f"+{key}={{value}}" for key in NEW),
)
"""What an override is made of."""


@dataclass
class Line:
    """A composed command line, to which overrides are applied as Hydra does at the end of composing. Choices of configs aside,
    which are not made anew, it is what the command line with them composes to. Groups that were changed are put back."""

    words: tuple[str, ...]
    whole: DictConfig
    config: DictConfig
    changed: set[str] = field(default_factory=set)

    @staticmethod
    def composed(words: tuple[str, ...], place: Path) -> Line:
        given = [word.replace("PLACE", str(place / "data")) for word in words]
        whole = compose("run", [*COMMON, f"paths.runs={place}/runs", *given])
        return Line(words, whole, whole.copy())

    def with_overrides(self, words: list[str]) -> DictConfig:
        """The config of the line and these; it is changed by the next call."""
        with open_dict(self.config):
            for key in self.changed:
                if key in self.whole:
                    self.config[key] = self.whole._get_node(key)
                else:
                    self.config.pop(key, None)
        self.changed.clear()
        parsed = OverridesParser.create().parse_overrides(words)
        self.changed.update(override.key_or_group.partition(".")[0] for override in parsed)
        ConfigLoaderImpl._apply_overrides_to_config(parsed, self.config)
        return self.config

    def keys(self) -> list[str]:
        """Every key, dotted, those that hold others too."""
        return [key for key in _keys(self.whole) if key not in GROUPS]

    def values(self) -> list[Any]:
        """The value of each key that has one of its own."""
        plain = OmegaConf.to_container(self.whole)
        return [value for value in _leaves(plain) if value != "???"]


def _keys(node: DictConfig, at: str = "") -> Iterator[str]:
    for name in node:
        key = f"{at}.{name}".strip(".")
        yield key
        inner = node._get_node(name)
        if isinstance(inner, DictConfig) and not (inner._is_none() or inner._is_missing() or inner._is_interpolation()):
            yield from _keys(inner, key)


def _leaves(plain: Any) -> Iterator[Any]:
    if isinstance(plain, (dict, list)):
        for inner in plain.values() if isinstance(plain, dict) else plain:
            yield from _leaves(inner)
    else:
        yield plain


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small files of pairs and of labelled texts."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "data").mkdir()
    pairs = [{"prompt": f"Tell {number}.", "chosen": "One.", "rejected": "Two."} for number in range(64)]
    for split in ("train", "test"):
        (folder / "data" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, pairs)), encoding="utf-8")
        texts = [f"story {number},{'ab'[number % 2]}" for number in range(64)]
        (folder / "data" / f"{split}.csv").write_text("\n".join(["text,label", *texts]), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def lines(place: Path) -> Iterator[list[Line]]:
    """The lines, composed once; what an interpolation says is parsed once."""
    with pytest.MonkeyPatch.context() as patch, initialize_config_dir(str(CONF), version_base="1.3"):
        patch.setattr(omegaconf.base, "parse", lru_cache(maxsize=None)(omegaconf.base.parse))
        yield [Line.composed(words, place) for words in LINES]


def said_of(line: Line, words: list[str], seen: Counter[str]) -> str:
    """What the person at the keyboard reads of a command line: the plan, or why there is none."""
    printed = Console(file=io.StringIO(), width=140)
    try:
        config = parse(line.with_overrides(words))
        finished(config)
        plan = make_plan(config)
        show(plan, (), printed)
    except Exception as error:
        said = sentence(error)
        if said is None:
            raise
        seen["refused by alignlab" if isinstance(error, AlignlabError) else "refused by Hydra"] += 1
        return said
    for work in plan.works:
        account = work.account
        assert account.made is not None or account.read == account.kept + sum(account.dropped.values())
        assert 0 < len(work.groups) <= account.kept
    seen["planned"] += 1
    return "planned"


def mutations(lines: list[Line]) -> st.SearchStrategy[tuple[int, list[str]]]:
    """A line and one or two overrides of it: values of its keys, most of them nonsense; keys that go, and new ones."""
    keys = [line.keys() for line in lines]
    places = [(number, key) for number, own in enumerate(keys) for key in own]
    values = [*VALUES, *sorted({json.dumps(value) for line in lines for value in line.values()})]
    more = st.none() | st.tuples(st.integers(0, 2**16), st.sampled_from(FORMS), st.sampled_from(values))

    def mutated(place: tuple[int, str], form: str, value: str, second: tuple[int, str, str] | None) -> tuple[int, list[str]]:
        number, key = place
        words = [form.format(key=key, value=value)]
        if second:
            words.append(second[1].format(key=keys[number][second[0] % len(keys[number])], value=second[2]))
        return number, words

    return st.builds(mutated, st.sampled_from(places), st.sampled_from(FORMS), st.sampled_from(values), more)


@pytest.mark.fuzz
def test_mutated_configs_are_planned_or_refused_in_one_sentence(lines: list[Line], place: Path) -> None:
    seen: Counter[str] = Counter()

    @fuzzed(MUTATED)
    @given(mutations(lines))
    def tried(mutation: tuple[int, list[str]]) -> None:
        number, words = mutation
        said = said_of(lines[number], words, seen)
        assert len(said.splitlines()) == 1, said

    unchanged = [said_of(line, [], Counter()) for line in lines]
    tried()

    assert unchanged.count("planned") >= len(lines) - 2  # FSDP needs a GPU and DeepSpeed its package
    assert sorted(path.name for path in place.iterdir()) == ["data"]
    assert sum(seen.values()) >= examples(MUTATED)
    assert min(seen.values()) > examples(MUTATED) / 40
