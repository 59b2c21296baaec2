"""A run as a folder for the hub: it loads and generates without the run, its card says what was measured, and repeats it."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from peft import PeftModel
from transformers import AutoModelForCausalLM, dynamic_module_utils

import alignlab
from alignlab.__main__ import main
from alignlab.commands.vllm_resolver import folder_for
from alignlab.config import parse
from alignlab.errors import AlignlabError, ControlError, ModelError, RunFolderError
from alignlab.evaluation.safe_range import read_range
from alignlab.hub import push
from alignlab.models.config import EMBEDDED
from run import run
from tests.contracts.test_methods import CONF, composed

MEASURED = ("evaluation.prompts=8", "control.strengths=[0.0,1.0]", "evaluation.suites=[toy]")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A measured run of RED, moved to where no other run is."""
    folder = tmp_path_factory.mktemp("made")
    run(composed(folder, "red", *MEASURED, "method.fit.learning_rate=1e-2"))
    return folder / "run"


def test_a_trial_judges_no_range_of_strengths(tmp_path: Path) -> None:
    run(composed(tmp_path, "red", *MEASURED, "scale=smoke"))

    assert read_range(tmp_path / "run") is None


@pytest.fixture(scope="module")
def pushed(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a dry run writes."""
    folder = tmp_path_factory.mktemp("pushed") / "cheerful"
    assert main(["push", str(made), "someone/cheerful", "--dry-run", "--to", str(folder)]) == 0
    return folder


def test_the_folder_loads_in_peft_and_generates_at_a_strength_by_its_own_function(
    made: Path, pushed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    policy = alignlab.load(made, device="cpu")
    ids = torch.tensor(policy.backbone.codec.prompts(["Tell a story about Tom and a kite."]))
    model: Any = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(EMBEDDED / "tiny", dtype=torch.float32), pushed
    ).eval()
    greedy = {"do_sample": False, "max_new_tokens": 12, "pad_token_id": 0}

    for strength in (0.0, 1.0, 3.0):
        found = model.generate(input_ids=ids, custom_generate=str(pushed), trust_remote_code=True, strength=strength, **greedy)
        with policy.tuner.at(strength):
            assert torch.equal(found, policy.backbone.model.generate(ids, **greedy))  # type: ignore[attr-defined]


def test_the_card_has_data_settings_table_range_licence_and_no_place_of_this_machine(made: Path, pushed: Path) -> None:
    card = (pushed / "README.md").read_text()
    results = json.loads((made / "report.json").read_text())["results"]
    safe = read_range(made)

    assert safe is not None
    assert read_range(pushed) == safe
    for expected in (
        "base_model: alignlab/tiny",
        "library_name: peft",
        "license: apache-2.0",
        safe.sentence[1:],
        "- fit: 24 of 24 rows kept",
        "![metrics against strength](dial.png)",
        'base = AutoModelForCausalLM.from_pretrained(EMBEDDED / "tiny", dtype="float32")',
        'PeftModel.from_pretrained(base, "someone/cheerful")',
    ):
        assert expected in card
    reward = next(row for row in results if (row["metric"], row["strength"]) == ("reward", 1.0))
    line = next(line for line in card.splitlines() if line.startswith("| toy/reward"))
    assert line.split(" | ")[2].startswith(f"{reward['value']:.3f}")
    assert {file.name for file in pushed.iterdir()} >= {"adapter_model.safetensors", "report.json", "config.yaml", "dial.png"}
    for file in (pushed / "README.md", pushed / "config.yaml", pushed / "adapter_config.json"):
        assert str(made.parent) not in file.read_text()
        assert str(Path.home()) not in file.read_text()


@pytest.mark.parametrize(("kind", "words"), [("PREFIX_TUNING", "PEFT counts the vectors"), ("PROMPT_TUNING", "PEFT reads the")])
def test_a_card_asks_no_adapter_for_a_strength_that_peft_cannot_give_it(
    kind: str, words: str, made: Path, tmp_path: Path
) -> None:
    copied = tmp_path / "run"
    shutil.copytree(made, copied)
    config = copied / "stages" / "fit" / "result" / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "peft_type": kind}))

    push(copied, "someone/soft", tmp_path / "out")

    card = (tmp_path / "out" / "README.md").read_text()
    assert "custom_generate" not in card
    assert "model.generate(**inputs, max_new_tokens=64)" in card
    assert words in card
    assert not (tmp_path / "out" / "custom_generate").exists()


def test_the_command_on_the_card_is_the_run(made: Path, pushed: Path) -> None:
    line = next(line for line in (pushed / "README.md").read_text().splitlines() if line.startswith("    alignlab run"))

    with initialize_config_dir(str(CONF), version_base="1.3"):
        again = parse(compose("run", shlex.split(line)[2:]))

    assert again.fingerprint == json.loads((made / "report.json").read_text())["fingerprint"]


def test_the_range_is_in_status(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["status", str(made.parent)])

    assert "holds from 0 to " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("repo", "to", "kind", "sentence"),
    [
        ("a/b/c", "new", ModelError, "names no repository of the hub; give OWNER/NAME"),
        ("a/b", "used", ModelError, "already holds files"),
    ],
)
def test_a_name_or_a_folder_that_cannot_be_is_refused(
    repo: str, to: str, kind: type[AlignlabError], sentence: str, made: Path, tmp_path: Path
) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine.txt").write_text("")

    with pytest.raises(kind, match=sentence):
        push(made, repo, tmp_path / to)

    assert not (tmp_path / "new").exists()


def test_a_run_without_an_adapter_has_nothing_to_push(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made, tmp_path / "run")
    (tmp_path / "run" / "stages" / "fit" / "result" / "adapter_config.json").unlink()

    with pytest.raises(ModelError, match="no adapter; export it as plain, and upload that folder"):
        push(tmp_path / "run", "a/b", tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_vllm_gets_a_folder_per_strength_of_runs_below_a_folder_and_of_no_others(made: Path, tmp_path: Path) -> None:
    """What vLLM asks the plug-in for; the rest of the plug-in needs vLLM, and a GPU."""
    run(composed(tmp_path / "lora", "sft", "tuner=lora", "tuner.rank=2", "method.fit.learning_rate=1e-1", "evaluation=off"))
    shutil.copytree(made, tmp_path / "red")
    loras, ids = tmp_path / "loras", torch.arange(4, 20)[None]

    place = folder_for("lora/run@1.5", tmp_path, loras)

    base = AutoModelForCausalLM.from_pretrained(EMBEDDED / "tiny", dtype=torch.float32)
    policy = alignlab.load(tmp_path / "lora" / "run", device="cpu")
    with torch.no_grad(), policy.tuner.at(1.5):
        expected = policy.backbone.model(ids).logits
        torch.testing.assert_close(PeftModel.from_pretrained(base, place).eval()(ids).logits, expected, rtol=1e-5, atol=1e-5)
    assert folder_for("lora/run@1.5", tmp_path, loras) == place
    assert folder_for("lora/run", tmp_path, loras).name == "strength-1.0"
    for name, kind, said in (
        ("lora/run@loud", ControlError, "'loud' is no strength"),
        ("lora/run@nan", ControlError, "'nan' is no strength"),
        ("../lora/run", RunFolderError, "there is no run '../lora/run' below"),
        ("@1", RunFolderError, "there is no run ''"),
        ("red@2", ModelError, "a RED adapter has no LoRA form"),
    ):
        with pytest.raises(kind, match=said):
            folder_for(name, tmp_path, loras)


def test_two_runs_of_one_backbone_are_loaded_as_one_policy(made: Path) -> None:
    policy = alignlab.load({"mood": made, "more": made}, device="cpu")

    sampling = alignlab.Sampling(8, 0.0, 1.0)
    (twice,) = policy.respond(["Tell a story."], strength={"mood": 1.0, "more": 0.0}, sampling=sampling, seed=0)
    assert [twice] == alignlab.load(made, device="cpu").respond(["Tell a story."], sampling=sampling, seed=0)
