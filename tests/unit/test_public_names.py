"""Names that users write stay: names are added here, and none goes without a line in CHANGELOG.md.

Keys and values of the configs are held by tests/experiments/composed.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

import alignlab
from alignlab import __main__ as command_line
from alignlab.config import GROUPS
from alignlab.evaluation import METRICS

CONF = Path(__file__).parents[2] / "conf"
NAMES = "ClmConfig ControlConfig Policy RedConfig Sampling at_class at_strength load"
CHOICES = {
    "method": "clm coh distill dpo evaluate meet pretrain rahf red reward sft tpt",
    "tuner": "adapter bitfit blocks clm control dera full ia3 lora lora_lower loreft prefix prompt red token_bank",
    "model": "gpt2_large gpt2_medium llama2_7b llama31_8b llama32_3b llama32_3b_instruct llama3_8b_instruct local qwen25_15b"
    " qwen25_7b qwen2_15b_instruct roberta_base roberta_large t5_base tiny tiny_gpt2 tiny_roberta tiny_t5",
    "data": "e2e_nlg glue glue_asked hh_rlhf jsonl mixture squad summaries super_glue text_classification texts toy toy_classes"
    " ultrafeedback"
    " ultrafeedback_cleaned",
    "control": "dial full_strength grid lora prefixes soft_prompt text token trained",
    "evaluation": "full off quick",
    "trainer": "deepspeed default fsdp validated",
    "tracking": "off wandb",
    "launch": "local slurm",
}
SUITES = {
    "toy": "capability consistency obedience reward",
    "preference": "accuracy accuracy_per_token reward_accuracy reward_margin",
    "fluency": "distinct_2 perplexity repetition_4 words",
    "classes": "bits_per_byte class_accuracy gap likelihood_separation nats_per_token pair_accuracy separation",
    "classification": "accuracy f1 matthews nats pearson spearman squared_error",
    "nlg": "bleu cider meteor nist rouge_l",
    "reward_pairs": "accuracy margin reward",
    "text": "bits_per_byte nats_per_token perplexity",
    "lm_eval": "average",
    "lexicon": "found reward",
    "reward_model": "reward win_rate",
    "judge": "first length_controlled mark ties turn1 turn2 unread win_rate",
}
COMMANDS = {
    "run": "",
    "status": "name --runs",
    "table": "name --means --against --where --runs --experiments --metrics --strength --baseline --form --to --results",
    "plot": "name --to --metrics --map --where --kind --runs",
    "report": "name --to --runs --experiments --metrics --strength --baseline",
    "params": "name",
    "export": "--to --as --strength --dtype --control --trust-remote-code",
    "push": "folder repo --dry-run --to --license --private",
    "serve": "--host --port --key-file --ui --outside --device --new-tokens --prompt-tokens --rows --waiting --body-bytes"
    " --grace",
    "sync": "folder",
    "lm-eval": "words",
    "judge-agreement": "file --model --base-url --limit --verdicts",
}


def missing(names: str, known: object) -> set[str]:
    return set(names.split()) - set(known)  # type: ignore[call-overload]


def test_the_package_offers_its_names() -> None:
    assert missing(NAMES, alignlab.__all__) == set()
    assert [name for name in NAMES.split() if not hasattr(alignlab, name)] == []


@pytest.mark.parametrize("group", CHOICES)
def test_a_group_has_its_choices_and_each_has_a_config_and_an_entry(group: str) -> None:
    configs = {file.stem for file in (CONF / group).glob("*.yaml")}

    assert missing(CHOICES[group], configs) == set()
    assert configs == set(GROUPS[group])


def test_the_suites_measure_what_they_did() -> None:
    assert {suite: gone for suite, names in SUITES.items() if (gone := missing(names, METRICS[suite]))} == {}


def test_the_commands_take_their_options(monkeypatch: pytest.MonkeyPatch) -> None:
    parsers: dict[str, argparse.ArgumentParser] = {}
    add = argparse._SubParsersAction.add_parser

    def noted(self: argparse._SubParsersAction, name: str, **given: object) -> argparse.ArgumentParser:
        parsers[name] = add(self, name, **given)
        return parsers[name]

    monkeypatch.setattr(argparse._SubParsersAction, "add_parser", noted)
    with pytest.raises(SystemExit, match=r"^0$"):
        command_line.main(["--help"])

    taken = {
        name: {word for action in parser._actions for word in (action.option_strings or [action.dest])}
        for name, parser in parsers.items()
    }
    assert {name: gone for name, words in COMMANDS.items() if (gone := missing(words, taken[name]))} == {}
