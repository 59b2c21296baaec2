"""A stage's key changes with everything that decides its result, and with nothing else."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from alignlab import commits, files, running
from alignlab.config import parse
from alignlab.models.config import EMBEDDED
from alignlab.planning import make_plan
from alignlab.running import stage_keys
from alignlab.training.stages import cache_key
from tests.experiments.sweeps import ROOT
from tests.unit.conftest import trainer_config

SMALL = ("data.pairs=64", "data.test_pairs=8", "data.corpus=64", "tracking=off", "evaluation=off")


@functools.cache
def keys(*words: str) -> dict[str, str]:
    """The key of each stage of a run."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = parse(compose("run", [*SMALL, *words]))
    plan = make_plan(config)
    return dict(zip([stage.name for stage in plan.method.stages], stage_keys(plan), strict=True))


def same(first: dict[str, str], second: dict[str, str]) -> set[str]:
    """The stages whose keys are equal."""
    return {name for name in first if second.get(name) == first[name]}


@pytest.mark.parametrize(
    ("method", "word", "shared"),
    [
        ("rahf", "method.alpha=3.0", {"instruct", "shift"}),
        ("rahf", "method.instruct.learning_rate=0.5", set()),
        ("rahf", "method.sample=4", {"instruct"}),
        ("meet", "method.joint.learning_rate=0.5", {"controls"}),
        ("meet", "method.controls.learning_rate=0.5", set()),
        ("clm", "method.beta=0.25", set()),
        ("dpo", "evaluation.prompts=7", {"prefer"}),
        ("dpo", "control.strengths=[0.0,2.0]", {"prefer"}),
        ("dpo", "data.test_pairs=9", {"prefer"}),
        ("dpo", "trainer.checkpoint_every_steps=7", {"prefer"}),
        ("dpo", "seed=1", set()),
        ("dpo", "data.pairs=65", set()),
        ("dpo", "data.flipped=0.5", set()),
        ("dpo", "model=tiny_gpt2", set()),
        ("dpo", "tuner=ia3", set()),
        ("dpo", "tuner.rank=3", set()),
        ("dpo", "trainer.micro_batch=8", set()),
        ("dpo", "model.template.format='{prompt} '", set()),
    ],
)
def test_what_a_setting_does_to_the_keys(method: str, word: str, shared: set[str]) -> None:
    assert same(keys(f"method={method}"), keys(f"method={method}", word)) == shared


def test_a_fine_tuned_base_is_shared_by_an_objective_that_comes_after_it() -> None:
    base = ("method=clm", "method.sft_first=true")

    assert same(keys(*base), keys(*base, "method.beta=0.25")) == {"sft"}


def test_a_second_model_counts_in_what_reads_it() -> None:
    dual = ("method=rahf", "method.variant=dual")

    shared = same(keys(*dual), keys(*dual, "method.update={rank: 4, alpha: 8.0, dropout: 0.0}"))
    assert shared == set()
    assert same(keys(*dual), keys(*dual, "method.alpha=3.0")) == {"dispreferred", "preferred", "shift"}


def test_what_does_not_say_what_it_is_made_of_is_refused() -> None:
    with pytest.raises(TypeError, match="does not say what decides its result"):
        cache_key(object())


def test_a_partial_is_its_function_and_what_it_was_given() -> None:
    assert cache_key(functools.partial(same, {})) != cache_key(functools.partial(same, {"a": "b"}))


def test_no_key_holds_a_place_in_memory() -> None:
    for method in ("sft", "dpo", "clm", "meet", "coh", "red", "pretrain", "rahf"):
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            config = parse(compose("run", [*SMALL, f"method={method}"]))
        plan = make_plan(config)
        assert " at 0x" not in str([cache_key(stage) for stage in plan.method.stages])


def test_paths_of_the_run_are_in_no_key(tmp_path: Path) -> None:
    assert same(keys("method=sft"), keys("method=sft", f"paths.runs={tmp_path}")) == {"fit"}


def folder_model(folder: Path) -> list[str]:
    """A copy of an embedded model as a local one."""
    shutil.copytree(EMBEDDED / "tiny", folder)
    return ["method=dpo", "model=local", f"model.path={folder}", "model.template.format='{prompt}'"]


def change(file: Path) -> None:
    """Other content of the same size, with the times that it had."""
    before = file.stat()
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def of(*words: str) -> tuple[str, dict[str, str]]:
    """The fingerprint of a run, and the keys of its stages."""
    keys.cache_clear()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        fingerprint = parse(compose("run", [*SMALL, *words])).fingerprint
    return fingerprint, keys(*words)


def test_a_moved_and_touched_model_is_the_same_and_one_changed_under_the_same_size_and_time_is_another(tmp_path: Path) -> None:
    words = folder_model(tmp_path / "here")
    first = of(*words)

    moved = tmp_path / "there" / "deep"
    moved.parent.mkdir()
    (tmp_path / "here").rename(moved)
    os.utime(moved / "model.safetensors", (1, 1))
    second = of(*words, f"model.path={moved}")
    change(moved / "model.safetensors")
    third = of(*words, f"model.path={moved}")

    assert second == first
    assert third[0] != first[0]
    assert not same(third[1], first[1])


@pytest.mark.parametrize("name", ["generation_config.json", "chat_template.jinja", "tokenizer_config.json", "config.json"])
def test_each_file_that_decides_what_a_model_says_is_in_its_keys(name: str, tmp_path: Path) -> None:
    words = folder_model(tmp_path / "model")
    first = of(*words)
    file = tmp_path / "model" / name

    if file.suffix == ".jinja":
        file.write_text("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    else:
        content = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps({**content, "comment": "another"}))

    second = of(*words)
    assert second[0] != first[0]
    assert not same(second[1], first[1])


def test_an_embedded_model_counts_by_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = of("method=dpo")
    shutil.copytree(EMBEDDED, tmp_path / "tiny")
    monkeypatch.setattr("alignlab.models.config.EMBEDDED", tmp_path / "tiny")

    copied = of("method=dpo")
    change(tmp_path / "tiny" / "tiny" / "model.safetensors")

    assert copied == first
    assert of("method=dpo")[0] != first[0]


def test_a_data_file_counts_by_its_content_and_not_by_its_place(tmp_path: Path) -> None:
    line = json.dumps({"prompt": "Tell", "chosen": "Tom was happy.", "rejected": "Tom fell."}) + "\n"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pairs.jsonl").write_text(line.replace("Tell", "Say") * 4 + line * 4)
    words = ["method=dpo", "data=jsonl", "data.train=pairs.jsonl", "data.test=pairs.jsonl"]

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        made = [parse(compose("run", ["tracking=off", *words, f"data.path={tmp_path / name}"])) for name in ("a", "b")]
        before = [config.fingerprint for config in made]
        change(tmp_path / "b" / "pairs.jsonl")

    assert before[0] == before[1]
    assert made[1].fingerprint != before[0]


def test_threads_decide_on_the_cpu() -> None:
    first = of("method=dpo", "trainer.device=cpu", "trainer.threads=1")

    assert not same(of("method=dpo", "trainer.device=cpu", "trainer.threads=2")[1], first[1])
    assert torch.get_num_threads() == 1
    assert running._threads(trainer_config(threads=None)) == 1


def test_a_hash_is_remembered_for_a_file_that_stays_and_a_garbage_memory_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(files, "REMEMBERED", 1)
    monkeypatch.setattr(files, "YOUNG_NS", 0)
    file = tmp_path / "weights"
    file.write_bytes(b"weights")
    read: list[Path] = []
    pieces = files._pieces
    monkeypatch.setattr(files, "_pieces", lambda path: (read.append(path), pieces(path))[1])
    expected = hashlib.sha256(b"weights").hexdigest()

    first = files.content_hash(file)
    files._known.clear()
    second = files.content_hash(file)
    (memory,) = (tmp_path / "cache" / "alignlab" / "contents").iterdir()
    memory.write_text(memory.read_text()[:-9])
    files._known.clear()

    assert (first, second, files.content_hash(file)) == (expected, expected, expected)
    assert read == [file, file]


def test_a_name_of_the_hub_is_the_commit_of_the_copy_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    refs = tmp_path / "models--somebody--model" / "refs"
    refs.mkdir(parents=True)
    (refs / "main").write_text("a" * 40)
    commits.hub_commit.cache_clear()

    assert commits.hub_commit("model", "somebody/model", None) == "a" * 40
    assert commits.hub_commit("model", "somebody/model", "b" * 40) == "b" * 40
