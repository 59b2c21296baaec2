"""What a sweep's plan counts without reading anything is what the runs do."""

from __future__ import annotations

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import OmegaConf
from rich.console import Console

from alignlab import plan_text, planning
from alignlab.config import parse
from alignlab.errors import AlignlabError, ConfigError, DataError, ModelError
from alignlab.plan_text import Pace, Paces, show
from alignlab.running import list_dropped, open_session
from alignlab.sweeps.jobs import planned_stages
from run import run
from tests.contracts.test_methods import TRIED, composed

EPOCHS = ("epochs=2.0", "steps=null", "batch=8")
"""CoH rounds up in each half of its course, so that an odd number of steps would be one more than planned."""
HALVES = "data.halves={seed: 1, test: null, max_prompt: null}"
CASES = {
    **{method: (method,) for method in TRIED},
    "dpo, on a half": ("dpo", HALVES, "data.part=rm"),
    "dpo behind sft": ("dpo", "method.sft_first=true"),
    "rahf, both responses": ("rahf", "method.responses=both"),
    "rahf, in halves": ("rahf", HALVES),
    "rahf, two models": ("rahf", "method.variant=dual"),
    "rahf, two models, in halves": ("rahf", "method.variant=dual", HALVES),
    "hir": ("rahf", "method.variant=hir", "tuner=control", "control=prefixes"),
    "some of the records": ("red", "data.limit=10"),
}


TOO_LONG = "longer than 40 tokens"
UNUSED = [
    *[(2, "an answer is empty"), (3, "both answers are the same"), (4, TOO_LONG), (5, "not valid JSON")],
    *[(7, "an answer is empty"), (8, "both answers are the same"), (9, TOO_LONG), (10, "not valid JSON")],
]
"""Lines of a file, and why each is dropped."""


@pytest.mark.parametrize("case", CASES)
def test_the_steps_of_epochs_are_counted_before_the_data_is_read(case: str, tmp_path: Path) -> None:
    method, *words = CASES[case]
    stages = parse(composed(tmp_path, method, *words)).method.fits()
    epochs = [f"method.{stage}.{word}" for stage in stages for word in EPOCHS]

    config = parse(composed(tmp_path, method, *words, *epochs))

    plan = planning.make_plan(config)
    made = {stage.name: work.steps for stage, work in zip(plan.method.stages, plan.works, strict=True) if stage.trains}
    assert {stage.name: stage.steps for stage in planned_stages(config) or ()} == made


def test_a_batch_beyond_the_rows_is_told(tmp_path: Path) -> None:
    plan = planning.make_plan(parse(composed(tmp_path, "red", "method.fit.batch=800", "data.pairs=20")))

    assert plan.works[0].note.startswith(
        "batch 800, more than the 20 groups, so a step holds some twice (a smaller one makes more steps), learning rate "
    )


def decoding(tmp_path: Path, method: str, *words: str) -> tuple[int, int, int] | None:
    """Texts at a time, rows of each and tokens of a row, as a plan has them."""
    need = planning.make_plan(parse(composed(tmp_path, method, *words))).decoding
    return (need[0].texts, need[0].rows, need[0].tokens) if need else None


def test_a_plan_says_what_decoding_takes(tmp_path: Path) -> None:
    words = ("evaluation.suites=[toy]", "evaluation.prompts=6", "evaluation.max_new_tokens=30")
    plan = planning.make_plan(parse(composed(tmp_path, "red", *words)))
    console = Console(record=True, width=240)

    show(plan, (), console)

    longest = max(len(ids) for ids in planning.load_codec(plan.config.model).prompts(plan.source.prompts()[:6]))
    assert f"6 texts at a time, 1 x {longest + 30} tokens each: weights 0.00194 + caches " in console.export_text()


def test_texts_have_a_row_for_each_term_and_beam_and_fewer_of_them_fit_a_smaller_budget(tmp_path: Path) -> None:
    words = ("evaluation.suites=[toy]", "evaluation.prompts=6", "control.strengths=[0.0,0.5]")
    greedy = ("evaluation.temperature=0.0", "evaluation.beams=3", "control.strengths=[0.0,1.0]")

    assert (decoding(tmp_path, "clm", *words) or ())[:2] == (6, 2)
    assert (decoding(tmp_path, "clm", *words, *greedy) or ())[:2] == (6, 3)
    assert (decoding(tmp_path, "clm", *words, "trainer.pass_gib=1e-4") or ())[:2] == (1, 2)


def test_where_no_text_is_sampled_no_decoding_is_planned(tmp_path: Path) -> None:
    assert decoding(tmp_path, "clm", "evaluation.suites=[preference]") is None


def test_beams_are_refused_where_the_evaluation_mixes_passes(tmp_path: Path) -> None:
    words = ("evaluation.temperature=0.0", "evaluation.beams=3", "control.strengths=[0.0,0.5,1.0,2.0]")

    with pytest.raises(
        ConfigError, match=r"evaluation.beams=3 follow one pass, and at strength 0\.5, strength 2 passes are mixed"
    ):
        decoding(tmp_path, "clm", *words)


def test_a_token_without_a_row_in_the_embedding_is_named_with_its_row(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model = tmp_path / "model"
    shutil.copytree(Path(planning.__file__).parent / "models" / "tiny" / "tiny", model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens([f"<tool{number}>" for number in range(600)])  # more than the rows that pad the embedding
    tokenizer.save_pretrained(model)
    rows = [{"prompt": f"Tell {mark}", "chosen": "One.", "rejected": "Two."} for mark in ("me.", "<tool599>")]
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = ("model=local", f"model.path={model}", "evaluation=off")

    with pytest.raises(
        DataError, match=r"^train\.jsonl:2: holds the token '<tool599>' \(id \d+\), but the model's embedding has"
    ):
        planning.make_plan(parse(composed(tmp_path, "dpo", *words, data=("data=jsonl", f"data.path={tmp_path}"))))


def test_a_plan_shows_one_row_as_it_will_be_fed(tmp_path: Path) -> None:
    plan = planning.make_plan(parse(composed(tmp_path, "dpo", "evaluation.suites=[]")))
    console = Console(record=True, width=400)

    show(plan, (), console)

    first = plan.source.split("train").records[0]
    response = first.responses[0].text
    (line,) = [line for line in console.export_text().splitlines() if line.startswith("row as fed")]
    assert line.startswith(f"row as fed    {first.row}: <bos>{first.prompt}\\n>>>{response[:120]}")
    assert line.rstrip().endswith(f"{response[-100:]}</s><<<")


def test_an_evaluation_that_could_sample_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"shortest has 1\d tokens, and with evaluation.max_new_tokens=256 a context of 256"):
        planning.make_plan(parse(composed(tmp_path, "red", "evaluation=full", "evaluation.max_new_tokens=256")))


def test_so_is_a_validation_that_could_sample_none(tmp_path: Path) -> None:
    words = ("trainer=validated", "trainer.validation.suite=toy", "trainer.validation.metric=reward", "evaluation=full")

    with pytest.raises(ConfigError, match="no text could be sampled"):
        planning.make_plan(parse(composed(tmp_path, "red", *words, "evaluation.suites=[]", "evaluation.max_new_tokens=256")))


REFUSED = {
    "data": (("data.max_tokens=6",), "no row is left to work on|a row may have 6"),
    "trainer.extra": (("+trainer.extra.optim=zzz",), "zzz is not a valid OptimizerNames"),
    "attention": (
        ("model.attention=flash_attention_2",),
        r"model\.attention=flash_attention_2 \(FlashAttention2 .* take sdpa or eager",
    ),
    "an unknown attention": (("model.attention=zzz",), r"model\.attention=zzz .*not supported.* take sdpa or eager"),
    "a batch": (("trainer.micro_batch=3",), r"trainer\.micro_batch=3 does not divide the stage's batch of 8"),
    "evaluation": (("evaluation=full", "evaluation.max_new_tokens=256"), "no text could be sampled"),
    "a target among right ones": (
        ("tuner.targets=[q_proj,v_prj]",),
        "'v_prj' names no layer of this model; nearest here: .*v_proj",
    ),
}
OF_HYDRA = OmegaConf.create({"mode": RunMode.RUN, "overrides": {"task": ["plan=true"]}})


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.parametrize("plan", [True, False])
def test_a_plan_refuses_what_a_run_refuses_and_leaves_nothing(
    what: str, plan: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, sentence = REFUSED[what]
    monkeypatch.setattr(HydraConfig, "get", lambda: OF_HYDRA)

    with pytest.raises(AlignlabError, match=sentence):
        run(composed(tmp_path, "sft", *words, f"plan={plan}"))

    assert not list(tmp_path.iterdir())


def test_a_plan_of_one_run_shows_its_rows_and_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(HydraConfig, "get", lambda: OF_HYDRA)

    assert run(composed(tmp_path, "sft", "plan=true")) is None

    said = capsys.readouterr().out
    assert "24 rows read, 24 kept, none dropped" in said
    assert re.search(r"^stage fit +2 steps, batch 8, learning rate 0\.003, \w+, 1 step of warm-up; trains tuner", said, re.M)
    assert f"{tmp_path}/run (new)" in said.replace("\n", "")
    assert list(tmp_path.iterdir()) == []


def test_a_run_begins_with_the_text_of_its_plan_and_leaves_the_time_of_like_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(HydraConfig, "get", lambda: OF_HYDRA)
    run(composed(tmp_path, "sft", "plan=true"))
    planned = capsys.readouterr().out
    run(composed(tmp_path, "sft"))
    ran = capsys.readouterr().out

    run(composed(tmp_path, "sft", "tuner.likelihood_rate=1e-4", f"folder={tmp_path}/other", "plan=true"))
    like = capsys.readouterr().out

    assert "time        no like run was made here, so it is not known" in planned
    assert ran.startswith(planned)
    assert re.search(r"^time +about \d.*: fit .* s, evaluation .* s, as like runs took on this machine", like, re.M)
    run(composed(tmp_path, "sft", "plan=true"))
    assert capsys.readouterr().out.startswith("this run is finished; force=true repeats it\nreport: ")


def test_of_the_times_of_like_runs_the_latest_of_this_machine_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = parse(composed(tmp_path, "sft"))
    paces = Paces(config)
    for machine, seconds in (("a", 1.0), ("b", 2.0), ("a", 3.0)):
        monkeypatch.setattr(plan_text, "this_machine", lambda machine=machine: machine)
        paces.note("fit", seconds)
    (file,) = tmp_path.rglob("*.jsonl")
    file.write_text(file.read_text() + '{"machine": "b", "sec')  # cut by a kill

    found = {}
    for machine in ("a", "b", "c"):
        monkeypatch.setattr(plan_text, "this_machine", lambda machine=machine: machine)
        found[machine] = paces.of("fit")
    file.unlink()
    file.mkdir()
    paces.note("fit", 4.0)

    assert found == {"a": Pace(3.0, "a"), "b": Pace(2.0, "b"), "c": Pace(3.0, "a")}
    assert caplog.messages == ["how long fit took is not kept for the plans of other runs (Is a directory)"]


def test_a_plan_estimates_the_memory_of_each_stage(tmp_path: Path) -> None:
    words = ("method.sft_first=true", "method.sft.batch=4", "method.prefer.batch=4", "trainer.micro_batch=2", "tuner=red")

    plan = planning.make_plan(parse(composed(tmp_path, "dpo", *words)))
    sft, prefer = plan.needs

    whole, edit = 520_320 * 4, 768 * 4
    assert sft
    assert prefer
    assert (sft.weights, sft.gradients, sft.moments) == (whole + edit, whole, 2 * whole)
    assert (prefer.weights, prefer.gradients, prefer.moments) == (whole + edit, edit, 2 * edit)
    assert (sft.groups, prefer.groups, prefer.trained) == (2, 2, 768)
    texts, pairs = ([group.members for group in work.groups] for work in plan.works)
    once = sorted(len(one.ids) + len(two.ids) - one.start for one, two in pairs)  # of a prompt that is the same
    assert prefer.tokens == sum(once[-2:])
    assert sft.tokens == 2 * max(len(member.ids) for (member,) in texts)
    larger = ("method.prefer.batch=64", "trainer.micro_batch=null")
    repeated = planning.make_plan(parse(composed(tmp_path, "dpo", *words, *larger))).needs[1]
    assert repeated
    assert len(once) < 64
    assert repeated.tokens == 64 // len(once) * sum(once) + sum(once[len(once) - 64 % len(once) :])
    padded = planning.make_plan(parse(composed(tmp_path, "dpo", *words, "trainer.packing=off"))).needs[1]
    assert padded
    assert padded.tokens == 2 * 2 * max(len(member.ids) for pair in pairs for member in pair) > prefer.tokens
    again = planning.make_plan(parse(composed(tmp_path, "dpo", *words, "trainer.gradient_checkpointing=true"))).needs[1]
    assert again
    assert again.activations < prefer.activations


def test_a_folder_without_weights_is_refused_in_the_plan(tmp_path: Path) -> None:
    shutil.copytree(Path(planning.__file__).parent / "models" / "tiny" / "tiny", tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()

    with pytest.raises(ModelError, match=r"holds no .*safetensors; convert the weights"):
        planning.make_plan(
            parse(composed(tmp_path, "sft", "model=local", f"model.path={tmp_path / 'model'}", "evaluation=off"))
        )


def test_scored_rows_under_a_likelihood_method_need_a_least_score_and_are_accounted_for(tmp_path: Path) -> None:
    rows = [{"prompt": "Tell a story.", "response": f"Story {n}.", "score": n / 4} for n in range(4)]
    for name in ("train", "test"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    data = ("data=jsonl", f"data.path={tmp_path}")

    plan = planning.make_plan(parse(composed(tmp_path, "sft", "evaluation=off", "method.least_score=0.5", data=data)))

    assert plan.works[0].account.dropped == {"a score below method.least_score=0.5": 2}
    assert plan.works[0].account.kept == 2
    with pytest.raises(DataError, match=r"^train\.jsonl:1: the response has a score and no label"):
        planning.make_plan(parse(composed(tmp_path, "red", "evaluation=off", data=data)))


def test_a_target_of_a_control_that_names_no_layer_is_refused(tmp_path: Path) -> None:
    words = ("control=lora", "control.targets=[q_proj,v_prj]")

    with pytest.raises(ConfigError, match=r"control\.targets: 'v_prj' names no layer of this model; nearest here: .*v_proj"):
        planning.make_plan(parse(composed(tmp_path, "meet", *words)))


def test_a_target_that_names_only_the_new_head_of_a_classifier_is_refused(tmp_path: Path) -> None:
    words = ("model=tiny_roberta", "tuner=lora", "tuner.targets=[query,out_proj]")

    with pytest.raises(ConfigError, match=r"tuner\.targets: 'out_proj' names classifier\.out_proj, the new head"):
        planning.make_plan(parse(composed(tmp_path, "sft", *words, data=("data=toy_classes", "data.pairs=24"))))


def test_dropped_rows_are_named_in_the_plan_and_each_is_listed_beside_the_files_of_the_run(tmp_path: Path) -> None:
    good = json.dumps({"prompt": "Tell me.", "chosen": "One.", "rejected": "Two."})
    empty, same = (good.replace('"Two."', other) for other in ('""', '"One."'))
    long = good.replace("Tell", " ".join(["Tell"] * 60))
    (tmp_path / "train.jsonl").write_text("\n".join([good, empty, same, long, '"'] * 2), encoding="utf-8")
    (tmp_path / "test.jsonl").write_text(f"{long}\n{good}\n", encoding="utf-8")
    data = ("data=jsonl", f"data.path={tmp_path}", "data.unusable_pairs=drop", "data.max_tokens=40", "data.too_long=drop")
    plan = planning.make_plan(parse(composed(tmp_path, "dpo", "evaluation.suites=[preference]", data=data)))
    console = Console(record=True, width=400)

    show(plan, (), console)
    with open_session(plan.config) as session:
        list_dropped(plan, session)

    said = "train.jsonl:2, train.jsonl:3, train.jsonl:5 and 6 more; a run lists each, with its reason, in dropped.csv"
    assert said in console.export_text()
    with (session.folder / "dropped.csv").open(encoding="utf-8") as file:
        assert [tuple(row.values()) for row in csv.DictReader(file)] == [
            *[("train.jsonl", str(line), reason, "prefer") for line, reason in UNUSED if reason != TOO_LONG],
            *[("train.jsonl", str(line), reason, "prefer") for line, reason in UNUSED if reason == TOO_LONG],
            ("test.jsonl", "1", TOO_LONG, "held_out"),
        ]


def test_a_run_that_drops_nothing_has_no_list_of_it(tmp_path: Path) -> None:
    plan = planning.make_plan(parse(composed(tmp_path, "dpo", "evaluation.suites=[]")))

    with open_session(plan.config) as session:
        (session.folder / "dropped.csv").write_text("of a run that was repeated", encoding="utf-8")
        list_dropped(plan, session)

    assert not (session.folder / "dropped.csv").exists()


def test_files_of_the_evaluation_are_read_before_anything_else(tmp_path: Path) -> None:
    (tmp_path / "words.txt").write_text("good\n")

    with pytest.raises(DataError, match="line 1: 'good' is no word with a score"):
        run(composed(tmp_path, "red", f"evaluation.lexicon.path={tmp_path}/words.txt", "evaluation.suites=[lexicon]"))

    assert not (tmp_path / "run").exists()
