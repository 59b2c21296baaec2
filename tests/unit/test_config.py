"""The typed run: what is refused before anything heavy is imported, and what a fingerprint depends on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.errors import HydraException
from omegaconf import DictConfig

from alignlab.command_line import sentence
from alignlab.config import GROUPS, parse, portable
from alignlab.errors import ConfigError
from alignlab.methods.preference import PreferenceConfig
from alignlab.training.config import FitConfig
from tests.unit.conftest import CONF

Compose = Callable[..., DictConfig]
HALVES = "data.halves={seed: 42, test: 10, max_prompt: null}"


def refused(compose: Compose, *words: str) -> str:
    """What the person at the keyboard reads."""
    with pytest.raises((ConfigError, HydraException)) as info:
        parse(compose(*words))
    return sentence(info.value) or "a traceback"


def jsonl(folder: Path, line: dict[str, object]) -> list[str]:
    """The words that choose a file with one line for training and for evaluation."""
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(line) + "\n", encoding="utf-8")
    return ["data=jsonl", f"data.path={path}"]


def test_a_run_is_typed_from_top_to_bottom(composed: Compose) -> None:
    config = parse(composed("method=dpo", "seed=3", "method.prefer.batch=4"))

    assert isinstance(config.method, PreferenceConfig)
    assert isinstance(config.method.prefer, FitConfig)
    assert (config.seed, config.method.prefer.batch, config.model.template.format) == (3, 4, "{prompt}")
    assert config.title == "dpo-lora-local-toy"


@pytest.mark.parametrize(("method", "tuner"), [("sft", "lora"), ("dpo", "lora"), ("red", "red"), ("pretrain", "full")])
def test_a_method_chooses_its_tuner(composed: Compose, method: str, tuner: str) -> None:
    assert parse(composed(f"method={method}")).tuner.name == tuner


def test_the_command_line_wins_over_the_tuner_of_the_method(composed: Compose) -> None:
    assert parse(composed("method=red", "tuner=lora")).tuner.name == "lora"


def test_the_rate_of_a_stage_is_that_of_the_tuner_unless_it_is_given(composed: Compose) -> None:
    chosen = parse(composed("method=sft", "tuner.likelihood_rate=0.5"))
    given = parse(composed("method=sft", "tuner.likelihood_rate=0.5", "method.fit.learning_rate=0.25"))

    assert (chosen.method.fit.learning_rate, given.method.fit.learning_rate) == (0.5, 0.25)


@pytest.mark.parametrize("group", [group for group in GROUPS if group != "launch"])
def test_every_choice_has_a_config_and_every_config_is_a_choice(group: str) -> None:
    assert {path.stem for path in (CONF / group).glob("*.yaml")} == set(GROUPS[group])


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            "method=rde",
            "unknown method 'rde'; did you mean red? known: clm, coh, distill, dpo, evaluate, meet, pretrain, rahf, red,"
            " reward, sft, tpt.",
        ),
        (
            "data=toys",
            "unknown data 'toys'; did you mean toy or toy_classes? known: e2e_nlg, glue, glue_asked, hh_rlhf, jsonl, mixture,"
            " squad, summaries, super_glue, text_classification, texts, toy, toy_classes, ultrafeedback,"
            " ultrafeedback_cleaned.",
        ),
        (
            "tuner=abc",
            "unknown tuner 'abc'; known: adapter, bitfit, blocks, clm, control, dera, full, ia3, lora, lora_lower,"
            " loreft, prefix, prompt, red, token_bank.",
        ),
    ],
)
def test_an_unknown_choice_is_answered_with_the_known_ones(composed: Compose, word: str, said: str) -> None:
    assert refused(composed, word) == said


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("metod=red", "unknown key metod; did you mean method"),
        ("method.fit.bach=4", "unknown key method.fit.bach; did you mean batch?"),
        ("+method.fit.bach=4", "unknown key method.fit.bach; did you mean batch?"),
        ("++model.template.boss=true", "unknown key model.template.boss; did you mean bos?"),
        ("+data.paths=x", "unknown key data.paths; did you mean part or pairs? known here: name, max_tokens"),
        ("+sed=1", "unknown key sed; did you mean seed or sweep or scale?"),
        ("+paths.run=x", "unknown key paths.run; did you mean runs?"),
    ],
)
def test_an_unknown_key_is_answered_with_its_neighbours(composed: Compose, word: str, said: str) -> None:
    assert refused(composed, word).startswith(said)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("seed=abc", "seed='abc' must be a whole number, at least 0 and at most 4294967295."),
        ("seed=null", "seed=None must be a whole number, at least 0 and at most 4294967295."),
        ("~seed", "seed=None must be a whole number, at least 0 and at most 4294967295."),
        ("force=1", "force=1 must be true or false."),
        ("folder=[3]", "folder=[3] must be a text, or null."),
        ("method.fit.batch=many", "method.fit.batch='many' must be a whole number, at least 1 and at most 1000000."),
        ("method.fit.steps=1.5", "method.fit.steps=1.5 must be a whole number, at least 1 and at most 10000000, or null."),
        ("method.fit=null", "method.fit=None must be a config with epochs, steps, "),
        ("control.strengths=1", "control.strengths=1 must be a list."),
        ("control.strengths=[a]", "control.strengths[0]='a' must be a finite number."),
        ("model.template.bos=maybe", "model.template.bos='maybe' must be true or false, or null."),
        ("paths.runs=null", "paths.runs=None must be a text."),
        ("data.flipped=some", "data.flipped='some' must be a finite number, at least 0 and at most 1."),
        ("data.prefixes=null", "data.prefixes=None must be a config with better, worse, separator."),
        ("data.halves={seed: 0, tests: 1}", "unknown key data.halves.tests; did you mean test?"),
        ("~paths", "paths.runs has no value"),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_its_key(composed: Compose, word: str, said: str) -> None:
    assert refused(composed, word).startswith(said)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("method.fit.batch=???", "method.fit.batch has no value; give it one on the command line."),
        ("~control.figure", "control.figure has no value; its config or the command line must give one."),
        ("data.limit=${nowhere}", "data.limit: Interpolation key 'nowhere' not found"),
        (
            "data.halves={seed: 0, test: 1}",
            "data.halves.max_prompt has no value; its config or the command line must give one.",
        ),
        (
            "~data",
            "data is not chosen; add data=NAME, one of toy, toy_classes, text_classification, glue, glue_asked, super_glue,"
            " squad, e2e_nlg, hh_rlhf,"
            " ultrafeedback, ultrafeedback_cleaned, summaries, texts, jsonl, mixture.",
        ),
    ],
)
def test_a_missing_value_is_named_with_its_key(composed: Compose, word: str, said: str) -> None:
    assert refused(composed, word) == said


@pytest.mark.parametrize(
    "words", [["trainer@x=1"], ["+tuner=_self_"], ["~launch=1"], ["+seed.z=1", "+seed.z=2"], ["hydra.job.env_copy=[NOT_SET]"]]
)
def test_what_hydra_cannot_compose_is_one_sentence(composed: Compose, words: list[str]) -> None:
    with pytest.raises(Exception) as info:  # Hydra raises what its parts raise
        composed(*words)

    said = sentence(info.value)
    assert said is not None
    assert said == " ".join(said.split())


def test_a_text_that_cannot_be_written_is_refused(composed: Compose) -> None:
    said = refused(composed, "evaluation.stop=['a\udc80']")

    assert said == r"evaluation.stop.0='a\udc80' holds a byte that is no UTF-8; give it as UTF-8."


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["method=pretrain", "data=hh_rlhf"],
            "method=pretrain needs corpus, which none of data=hh_rlhf, tuner=full, model=local, control=dial provides;",
        ),
        (
            ["method=pretrain", "tuner=lora"],
            "method=pretrain needs every weight, which none of data=toy, tuner=lora, model=local, control=dial provides;",
        ),
        (["method=dpo", "method.loss=ipo", "method.smoothing=0.1"], "method.smoothing has no meaning for method.loss=ipo"),
        (["method=dpo", "method.loss=robust", "method.smoothing=0.5"], "method.smoothing must be below 0.5"),
        (["method=dpo", "method.prefer.loss_on=all"], "method.prefer.loss_on must be response"),
        (
            ["method=dpo", "method.reference=me"],
            "method.reference='me' is not known; choose one of base, start, none, model:PATH.",
        ),
        (["method=dpo", "method.beta=0"], "method.beta=0.0 must be at least 1e-06 and at most 1000."),
        (["method=sft", "method.fit.epochs=1", "method.fit.steps=5"], "method.fit: give epochs or steps"),
        (["data.too_long=cut"], "data.too_long='cut' is not known; choose one of error, drop, cut_prompt_left, cut_response."),
        (["data.limit=0"], "data.limit=0 must be at least 1, or null."),
        (
            ["data.prefixes.worse=null"],
            "data.prefixes.better=' happy, glad, merry, joyful.' needs data.prefixes.worse,",
        ),
        (["data.prefixes.better=' '"], "data.prefixes.better=' ' is empty; give it a text, or null."),
        (
            ["data.prefixes={better: Hm., worse: Hm.}"],
            "data.prefixes: better and worse are both 'Hm.'; give two",
        ),
        (["data.flipped=-0.1"], "data.flipped=-0.1 must be at least 0 and at most 1: a share of the training pairs."),
        (["data.flipped=1.1"], "data.flipped=1.1 must be at least 0 and at most 1: a share of the training pairs."),
        (["data.flipped=nan"], "data.flipped=nan must be a finite number, at least 0 and at most 1."),
        (["data.part=rm"], "data.part='rm' needs data.halves, which is null; give data.halves={seed: 42, test: null"),
        (["data.part=sft", HALVES], "data.part='sft' is not known; choose one of rm, ppo, or null."),
        (
            ["data.halves={seed: -1, test: null, max_prompt: null}"],
            "data.halves.seed=-1 must be at least 0 and",
        ),
        (["data.halves={seed: 0, test: 0, max_prompt: null}"], "data.halves.test=0 must be at least 1, or null."),
        (["data.halves={seed: 0, test: null, max_prompt: 0}"], "data.halves.max_prompt=0 must be at least 1, or null."),
        (["trainer.micro_batch=-2"], "trainer.micro_batch=-2 must be at least 1, or null."),
        (["model.path=nowhere"], "model.path=nowhere holds no config.json"),
        (["model.path=null"], "model=local needs model.path"),
        (["model.dtype=float8"], "model.dtype='float8' is not known"),
        (["model.template.format=x"], "model.template.format='x' must hold {prompt} exactly once."),
        (
            ["++model.template.arguments={a: [1]}"],
            "model.template.arguments.a=[1] must be a text, a finite number, true, false or null.",
        ),
        (
            ["model.template.chat=false", "++model.template.arguments={a: 1}"],
            "model.template.arguments go to a chat template, and model.template.chat is false",
        ),
        (["tuner.edit=all"], "tuner.edit='all' is not known; choose one of both, scale, shift."),
        (["tuner.likelihood_rate=20"], "tuner.likelihood_rate=20.0 must be above 0 and below 10."),
        (["evaluation.suites=[toys]"], "unknown evaluation suite 'toys'; did you mean toy?"),
        (
            ["evaluation.repetition_penalty=nan"],
            "evaluation.repetition_penalty=nan must be a finite number, at least 0.01",
        ),
        (["evaluation.beams=4"], "evaluation.beams=4 draw nothing, so set temperature=0"),
        (["trainer.pass_gib=0"], "trainer.pass_gib=0.0 must be above 0."),
        (["data=jsonl"], "data=jsonl needs data.path"),
        (["data=jsonl", "data.path=nowhere"], "data.path=nowhere does not exist"),
        (["data=hh_rlhf", "data.path=nowhere"], "data.path=nowhere does not exist"),
        (["data=ultrafeedback", "data.frame=x"], "data.frame='x' must hold {prompt} exactly once."),
    ],
)
def test_parts_that_do_not_fit_or_cannot_run_are_refused(composed: Compose, words: list[str], said: str) -> None:
    assert refused(composed, *words).startswith(said)


def test_a_method_on_pairs_refuses_a_file_of_single_responses(composed: Compose, tmp_path: Path) -> None:
    words = jsonl(tmp_path, {"prompt": "p", "response": "r", "label": "good"})

    said = refused(composed, "method=dpo", *words)

    assert said.startswith(
        "method=dpo needs pairs, which none of data=jsonl, tuner=lora, model=local, control=dial provides; try data=toy"
    )


def test_pretraining_refuses_a_file_of_pairs(composed: Compose, tmp_path: Path) -> None:
    words = jsonl(tmp_path, {"prompt": "p", "chosen": "c", "rejected": "r"})

    assert refused(composed, "method=pretrain", *words).startswith("method=pretrain needs corpus")


def test_a_folder_without_the_named_files_is_refused(composed: Compose, tmp_path: Path) -> None:
    said = refused(composed, "data=hh_rlhf", f"data.path={tmp_path}")

    assert said.endswith("holds no file '*train*.jsonl*'; set data.train and data.test.")


def test_a_broken_first_line_is_refused_with_its_place(composed: Compose, tmp_path: Path) -> None:
    words = jsonl(tmp_path, {})
    (tmp_path / "rows.jsonl").write_text("{broken\n", encoding="utf-8")

    with pytest.raises(Exception, match=r"rows\.jsonl:1: not valid JSON"):
        parse(composed(*words))


def test_suites_that_the_data_cannot_serve_are_left_out_with_the_reason(composed: Compose) -> None:
    config = parse(composed("data=hh_rlhf"))

    assert config.suites == ("preference", "fluency")
    assert config.left_out == {
        "toy": "needs oracle, which this run does not have",
        "classes": "needs classes, which this run does not have",
        "classification": "needs label set, which this run does not have",
        "nlg": "needs references, which this run does not have",
        "reward_pairs": "needs response scores, which this run does not have",
        **dict.fromkeys(
            ("text", "lm_eval", "lexicon", "reward_model", "judge"), "needs settings of its own, which this run does not have"
        ),
    }


def test_suites_keep_the_order_of_the_config(composed: Compose) -> None:
    config = parse(composed("evaluation.suites=[fluency,toy]"))

    assert (config.suites, config.left_out) == (("fluency", "toy"), {})


@pytest.mark.parametrize(
    "words",
    [
        ["seed=7"],
        ["force=true"],
        ["folder=somewhere"],
        ["paths.runs=elsewhere"],
        ["tracking=off"],
        ["tracking.project=other"],
    ],
)
def test_the_fingerprint_ignores_what_changes_no_result(composed: Compose, words: list[str]) -> None:
    assert parse(composed(*words)).fingerprint == parse(composed()).fingerprint


@pytest.mark.parametrize(
    "words",
    [
        ["method=sft"],
        ["tuner=lora"],
        ["tuner.edit=scale"],
        ["model.dtype=bfloat16"],
        ["model.template.format='{prompt} '"],
        ["data.limit=5"],
        ["data.world_seed=1"],
        ["data.flipped=0.1"],
        [HALVES],
        [HALVES, "data.part=ppo"],
        ["control=trained"],
        ["control.strengths=[0,1]"],
        ["evaluation=full"],
        ["evaluation.sampling_seed=1"],
        ["evaluation.top_k=5"],
        ["evaluation.stop=[Tom]"],
        ["method.fit.learning_rate=0.5"],
        ["trainer.micro_batch=2"],
    ],
)
def test_the_fingerprint_changes_with_everything_else(composed: Compose, words: list[str]) -> None:
    assert parse(composed(*words)).fingerprint != parse(composed()).fingerprint


def test_the_order_of_the_words_does_not_change_the_fingerprint(composed: Compose) -> None:
    first = parse(composed("data.limit=5", "method.fit.batch=4"))

    assert parse(composed("method.fit.batch=4", "data.limit=5")).fingerprint == first.fingerprint


def test_a_plain_config_makes_the_same_run_again(composed: Compose) -> None:
    config = parse(composed("method=dpo", "seed=5", "data.limit=7"))

    again = parse(DictConfig(dict(config.plain)))

    assert again == config
    assert json.loads(json.dumps(config.plain)) == config.plain


@pytest.mark.parametrize("method", ["red", "sft", "dpo"])
def test_numbers_for_the_embedded_models_reach_no_other_model(composed: Compose, method: str) -> None:
    tiny, real, config = (composed(f"method={method}", f"model={model}") for model in ("tiny", "llama2_7b", "local"))

    assert real.method == config.method
    assert real.tuner == config.tuner
    assert tiny.tuner != real.tuner


def test_a_place_that_is_written_as_a_number_is_kept_as_a_place(composed: Compose, tmp_path: Path) -> None:
    config = parse(composed(f"paths.runs={tmp_path}", "paths.data=0.5", f"folder={tmp_path}/run"))

    assert portable(config)["paths"]["data"].endswith("/0.5")


LONG, SHORT = "x" * 300, "x" * 12 + "..." + "x" * 13
"""More bytes than the name of a file has on any file system; and how a sentence tells of it."""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            [f"evaluation.judge.against={LONG}"],
            f"evaluation.judge.against='{SHORT}' is no path: names have at most 255",
        ),
        (
            [f"evaluation.reward_model.path={LONG}"],
            f"evaluation.reward_model.path='{SHORT}' is no path: names have at most 255",
        ),
        (["method=dpo", f"method.reference=model:{LONG}"], "method.reference='model:xxxxxx...xxxxxxxxxxxxx' is no path: "),
        (["tuner=adapter", "tuner.bottleneck=4294967296"], "tuner.bottleneck=4294967296 must be at least 1 and at most 8192."),
        (
            ["method=meet", "evaluation.judge.second_turn_strength=1", "evaluation.judge.mode=single"],
            "evaluation.judge.second_turn_strength=1 is a strength, and this run has classes; leave it out.",
        ),
    ],
)
def test_what_only_the_run_would_find_out_is_refused_at_once(composed: Compose, words: list[str], said: str) -> None:
    assert refused(composed, *words).startswith(said)
