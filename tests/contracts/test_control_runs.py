"""Runs with classes through the door of `python run.py`: where classes come from, what is refused, and what is exported."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import alignlab
from alignlab.data.toy.world import judge
from alignlab.errors import ConfigError, ControlError, DataError
from alignlab.finished import export
from alignlab.models.policy import Policy
from alignlab.models.sampling import Sampling
from run import run
from tests.contracts.test_methods import composed

GREEDY = Sampling(max_new_tokens=12, temperature=0.0, top_p=1.0)
PROMPT = "Tell a story about Tom and a kite."
every_form = pytest.mark.parametrize("form", ["text", "token", "soft_prompt", "lora"])


def written(folder: Path, lines: list[dict[str, object]]) -> tuple[str, ...]:
    """A data set of these lines, for training and test alike, as words of a run."""
    (folder / "data").mkdir()
    for name in ("train", "test"):
        (folder / "data" / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return ("data=jsonl", f"data.path={folder}/data")


def scored(count: int) -> list[dict[str, object]]:
    return [{"prompt": PROMPT, "response": f"Tom saw {number} kites.", "score": float(number)} for number in range(count)]


def continued(folder: Path, policy: Policy) -> list[int]:
    """What an exported checkpoint says next, greedily, by transformers alone."""
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([policy.backbone.codec.prompts([PROMPT])[0]])
    given = {"inputs_embeds": plain.get_input_embeddings()(ids)}
    prefix = folder / "prefix.json"
    about = json.loads(prefix.read_text()) if prefix.exists() else {"behind": 0}
    vectors = load_file(folder / "prefix.safetensors")["prefix"][None] if prefix.exists() else torch.zeros(1, 0, 96)
    embedded = given["inputs_embeds"]
    whole = torch.cat([embedded[:, : about["behind"]], vectors, embedded[:, about["behind"] :]], dim=1)
    made: list[int] = plain.generate(inputs_embeds=whole, do_sample=False, max_new_tokens=12)[0].tolist()
    return made


@every_form
def test_an_exported_class_answers_like_the_tuned_model(form: str, tmp_path: Path) -> None:
    run(composed(tmp_path, "coh", f"control={form}", "evaluation=off", "method.joint.learning_rate=1e-2", steps=4))
    policy = alignlab.load(tmp_path / "run")

    difference = export(tmp_path / "run", tmp_path / "plain", "float32", "bad")

    said = policy.respond([PROMPT], control="bad", sampling=GREEDY, seed=0)[0]
    assert difference <= 1e-4
    assert policy.backbone.codec.decode(continued(tmp_path / "plain", policy)).startswith(said)


def test_an_export_without_a_class_says_which_there_are(tmp_path: Path) -> None:
    run(composed(tmp_path, "coh", "evaluation=off"))

    with pytest.raises(ControlError, match="has classes; choose one with --control good, bad or none"):
        export(tmp_path / "run", tmp_path / "plain", "float32")


def test_an_export_of_a_class_that_a_run_does_not_have_is_refused(tmp_path: Path) -> None:
    run(composed(tmp_path, "red", "evaluation=off"))

    with pytest.raises(ControlError, match="has no classes; leave --control out"):
        export(tmp_path / "run", tmp_path / "plain", "float32", "good")


@pytest.mark.parametrize("form", ["soft_prompt", "lora"])
def test_the_folder_of_a_joint_stage_loads_with_peft_alone(form: str, tmp_path: Path) -> None:
    run(composed(tmp_path, "meet", f"control={form}", "evaluation=off"))
    policy = alignlab.load(tmp_path / "run")
    result = tmp_path / "run" / "stages" / "joint" / "result"

    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(result / "lm"), str(result / "control"))

    ids = torch.tensor([policy.backbone.codec.prompts([PROMPT])[0]])
    deciding = alignlab.at_class(model, "good")
    new = model.generate(input_ids=ids, custom_generate=deciding, do_sample=False, max_new_tokens=12)[0, ids.shape[1] :]
    said = policy.respond([PROMPT], control="good", sampling=GREEDY, seed=0)[0]
    assert policy.backbone.codec.continuation(tuple(ids[0].tolist()), new.tolist()) == said


def test_labels_of_single_responses_are_classes_the_liked_one_first(tmp_path: Path) -> None:
    lines = [{"prompt": PROMPT, "response": f"Tom {n}.", "label": label} for n, label in enumerate(["bad", "good", "odd"] * 4)]
    words = ("control.classes.by=labels", "control.classes.names=null", "control.strengths=[]")

    run(composed(tmp_path, "meet", *words, data=written(tmp_path, lines)))

    policy = alignlab.load(tmp_path / "run")
    answers = policy.respond([PROMPT] * 3, control=["good", "bad", "odd"], sampling=GREEDY, seed=0)
    assert policy.tuner.controls is not None
    assert policy.tuner.controls.names == ("good", "bad", "odd")
    assert len(answers) == 3


def test_scores_are_cut_at_quantiles_and_the_edges_stay_with_the_adapter(tmp_path: Path) -> None:
    words = ("control.classes.by=scores", "control.classes.bins=3", "control.classes.names=null", "control.strengths=[]")

    run(composed(tmp_path, "meet", *words, data=written(tmp_path, scored(9))))

    adapter = json.loads((tmp_path / "run/stages/joint/result/control/adapter_config.json").read_text())
    assert adapter["classes"] == ["high", "middle", "low"]
    assert adapter["edges"] == [5.5, 2.5]


def test_a_trained_control_sets_good_and_bad_stories_apart(tmp_path: Path) -> None:
    # At the length and the rates of the embedded model's own configs.
    data = ("data.pairs=2000", "data.test_pairs=8")
    run(composed(tmp_path, "meet", "evaluation=off", data=data, steps=40, batch=32))
    policy = alignlab.load(tmp_path / "run")
    prompts = [PROMPT, "Tell a short story about Mia and a drum."] * 32
    sampling = Sampling(max_new_tokens=64, temperature=1.0, top_p=1.0)

    rewards = {
        name: fmean(
            judge(prompt, text).reward
            for prompt, text in zip(prompts, policy.respond(prompts, control=name, sampling=sampling, seed=0), strict=True)
        )
        for name in ("good", "bad")
    }

    assert rewards["good"] - rewards["bad"] > 0.3


@pytest.mark.parametrize(
    ("words", "error", "sentence"),
    [
        (["control.length=400"], ConfigError, "a control or prompt of 400 tokens leaves -144 of 256 for the text; shorten it"),
        (["control.placeholders=[127,419]"], ConfigError, "419 lies beyond the vocabulary of 419"),
        (["control.placeholders=[0,127]"], ConfigError, "holds BOS, EOS or the padding"),
        (["control.placeholders=[127]"], ConfigError, "an unused id for each of 2 classes"),
        (["control=dial"], ConfigError, "is taken from control.rate, which control=dial does not have; choose control=text"),
        (["tuner=lora"], ConfigError, "is taken from tuner.joint_rate, which tuner=lora does not have; choose tuner=control"),
        (["control=text"], ConfigError, "method=meet needs learned control.*a phrase has nothing to learn by itself"),
        (["control.classes.by=labels"], ConfigError, "control=soft_prompt needs labels"),
        (["method.stages=[joint,controls]"], ConfigError, r"must be \[controls,joint\], \[controls\] or \[joint\]"),
        (["method.controls.batch=4"], ConfigError, "must be the same: both stages take their steps from one stream"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_control_that_cannot_be_is_one_sentence_and_leaves_nothing(
    words: list[str], error: type[Exception], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=sentence):
        run(composed(tmp_path, "meet", *words))

    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("labels", "names", "sentence"),
    [
        (["good"], "null", "finds good in the training split of data=jsonl; a control chooses between at least two classes"),
        (["good", "bad"], "[good,bad,odd]", r"class 'odd' has no training row \(good: 2, bad: 2, odd: 0; none left out\)"),
        (["good", "none"], "null", "is called 'none', which stands for no class"),
    ],
)
def test_classes_that_the_data_does_not_have_are_one_sentence(
    labels: list[str], names: str, sentence: str, tmp_path: Path
) -> None:
    lines = [{"prompt": PROMPT, "response": f"Tom {n}.", "label": label} for n, label in enumerate(labels * 2)]
    words = ("control.classes.by=labels", f"control.classes.names={names}")

    with pytest.raises(DataError, match=sentence):
        run(composed(tmp_path, "meet", *words, data=written(tmp_path, lines)))

    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("method", "words", "missing"),
    [("red", ["control=lora"], "control=lora needs controls"), ("sft", ["tuner=control", "control=lora"], "labelled training")],
)
def test_a_control_without_a_method_that_learns_it_is_refused(
    method: str, words: list[str], missing: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=missing):
        run(composed(tmp_path, method, *words))
