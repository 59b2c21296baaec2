"""What the person at the keyboard sees: quick answers, one sentence for an error, and nothing left behind."""

from __future__ import annotations

import copy
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException, MissingConfigException

from alignlab.__main__ import main
from alignlab.command_line import (
    CONF,
    OWN_CONFIGS,
    expand_overrides,
    run_command,
    sentence,
    share_config_store,
    show_words,
    take_config_folders,
)
from alignlab.commands.help import complete, note_on_config
from alignlab.config import parse
from alignlab.errors import AlignlabError, ConfigError, DivergedError
from alignlab.tracking.ledger import Ledger

ROOT = Path(__file__).parents[2]
HEAVY = re.compile(r"\| +(torch|transformers|peft|datasets|wandb|matplotlib|scipy)$", re.MULTILINE)
IMPORTS = re.compile(r"^import time:.*\n", re.MULTILINE)


def run_py(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """run.py in a folder of its own, with a record of what it imports."""
    command = [sys.executable, "-X", "importtime", str(ROOT / "run.py"), *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def own_words() -> Iterator[logging.Logger]:
    """alignlab's logger, put back as it was."""
    words = logging.getLogger("alignlab")
    before = (words.handlers[:], words.level, words.propagate)
    yield words
    words.handlers[:], words.level, words.propagate = before[0], before[1], before[2]


def test_help_lists_the_groups_and_experiments_without_composing_a_config(tmp_path: Path) -> None:
    done = run_py(tmp_path, "--help")

    assert done.returncode == 0
    assert done.stdout.startswith("usage: python run.py [-m] [GROUP=CHOICE ...] [KEY=VALUE ...]\n")
    for line in (
        r"  python run.py -m method=red tuner=red,lora seed=0,1,2",
        r"method: clm, coh, distill, dpo, evaluate, meet, pretrain, rahf, red, reward, sft, tpt",
        r"    what is learned from the data, in which stages; default: red",
        r"real: smollm",
        r"scale=null: smoke: .*",
    ):
        assert re.search(f"^{line}$", done.stdout, re.MULTILINE), line
    assert "sizing" not in done.stdout
    assert not HEAVY.search(done.stderr)
    assert not re.search(r"\| +hydra_plugins", done.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        ("alignlab ta", "table"),
        ("alignlab table ", ""),
        ("alignlab run exp", "experiment="),
        ("alignlab run trai", "trainer= trainer."),
        ("python run.py method=dp", "method=dpo"),
        ("alignlab run scale=", "scale=paper scale=toy scale=smoke"),
        ("alignlab run seed=1 experiment=me", "experiment=meet/"),
        ("alignlab run experiment=clm/table5", "experiment=clm/table5 experiment=clm/table5/"),
        ("alignlab run experiment=clm/toy/table1/d", "experiment=clm/toy/table1/dera experiment=clm/toy/table1/dpo"),
    ],
)
def test_a_shell_completes_commands_groups_choices_and_experiments(
    line: str, answer: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], own_words: logging.Logger
) -> None:
    monkeypatch.setenv("COMP_LINE", line)

    assert main(["-sc", "query=bash"]) == 0

    assert capsys.readouterr().out.strip() == answer


def test_hydra_completes_keys_behind_the_row_of_an_experiment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMP_LINE", "alignlab run experiment=clm/toy/table1/dpo data.pai")

    assert not complete([])

    assert os.environ["COMP_LINE"] == "alignlab experiment=clm/toy/table1 +experiment/clm/table1=dpo data.pai"


def test_a_folder_of_ones_own_has_data_experiments_and_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own" / "data").mkdir(parents=True)
    (tmp_path / "own" / "data" / "mine.yaml").write_text("defaults: [toy, _self_]\npairs: 48\n")
    (tmp_path / "own" / "experiment" / "home" / "table").mkdir(parents=True)
    table = "# @package _global_\ndefaults: [{override /data: mine}]\n"
    table += "hydra: {mode: MULTIRUN, sweeper: {params: {+experiment/home/table: glob(*), seed: '0,1'}}}\n"
    (tmp_path / "own" / "experiment" / "home" / "table.yaml").write_text(table)
    for row in ("red", "dpo"):
        text = f"# @package _global_\ndefaults: [{{override /method: {row}}}]\n"
        (tmp_path / "own" / "experiment" / "home" / "table" / f"{row}.yaml").write_text(text)
    monkeypatch.setenv(OWN_CONFIGS, "")  # put back behind the test
    monkeypatch.chdir(tmp_path)

    words = expand_overrides(take_config_folders(["experiment=home/table/dpo", "--config-dir", "own", "seed=1"]))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = parse(compose("run", words))

    assert words == ["experiment=home/table", "+experiment/home/table=dpo", "seed=1"]
    assert (config.method.name, config.data.pairs) == ("dpo", 48)
    assert os.environ[OWN_CONFIGS] == str(tmp_path / "own")
    assert run_command(["tuner=red,lora", "data.path=my data"]) == (
        f"python run.py --config-dir={tmp_path / 'own'} tuner=red,lora 'data.path=my data'"
    )


def test_words_of_hydra_stay_beside_a_folder_of_configs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OWN_CONFIGS, "")
    words = ["-m", "-c", "job", "a=1,2", "--info", "searchpath"]

    assert take_config_folders(words) == words


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config-dir"], "--config-dir needs a folder: --config-dir FOLDER."),
        (["-cd", "nowhere"], r"there is no folder .*/nowhere of configs; give one that is laid out as conf/ to --config-dir\."),
        (["--config-dir=."], r".*/data/toy\.yaml has the name of a config of alignlab; give it another\."),
    ],
)
def test_a_folder_of_configs_that_does_not_fit_is_one_sentence(
    words: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "toy.yaml").write_text("name: toy\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(OWN_CONFIGS, raising=False)

    with pytest.raises(ConfigError, match=f"^{said}$"):
        take_config_folders([*words])


def test_the_config_is_shown_without_importing_anything_heavy(tmp_path: Path) -> None:
    done = run_py(tmp_path, "method=dpo", "--cfg", "job")

    assert done.returncode == 0
    assert "name: dpo" in done.stdout
    assert not HEAVY.search(done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_the_config_of_an_experiment_that_sweeps_says_what_its_jobs_set(tmp_path: Path) -> None:
    shown = run_py(tmp_path, "experiment=clm/table1", "scale=smoke", "seed=0", "--cfg", "job")
    found = re.search(r"^note: (.*); that of the first: python \S*run\.py (.*)$", shown.stderr, re.M)
    assert found

    alone = run_py(tmp_path, *found[2].split())

    assert shown.stdout.startswith("model:\n  name: tiny\n")
    assert found[1].startswith("experiment=clm/table1 is a sweep: its jobs set +experiment/clm/table1, model, which this")
    assert alone.stdout.startswith("model:\n  name: llama32_3b\n")
    assert "scale: smoke\n" in alone.stdout
    assert "note:" not in alone.stderr
    assert note_on_config(["method=dpo", "--cfg", "job"]) == ""


def test_a_command_that_there_is_not_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["statsu"]) == 2
    assert main(["method=dpo", "plan=true"]) == 2

    typo, forgotten = capsys.readouterr().err.splitlines()
    assert typo.startswith("error: unknown command 'statsu'; did you mean status? known: export, ")
    assert forgotten == "error: 'method=dpo' is no command; `alignlab run method=dpo plan=true` starts a run."


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["method=rde"],
            "error: unknown method 'rde'; did you mean red? known: clm, coh, distill, dpo, evaluate, meet, pretrain, rahf, red,"
            " reward, sft, tpt.",
        ),
        (["method.fit.bach=3"], "error: unknown key method.fit.bach; did you mean batch? known here: "),
        (["+method.fit.bach=3"], "error: unknown key method.fit.bach; did you mean batch? known here: "),
        (["seed=x"], "error: seed='x' must be a whole number, at least 0 and at most 4294967295."),
        (["method=pretrain", "data=hh_rlhf"], "error: method=pretrain needs corpus, which none of data=hh_rlhf, tuner=full"),
        (["seed=[1"], "error: "),
        (["control.strengths.x=1"], "error: a key on the command line does not fit the configs: "),
        (["folder=../model/config.json"], "error: ../model/config.json is a file; give the path of a folder."),
        (
            ["-m", "paths.runs=../model/config.json/runs", "seed=0,1"],
            "error: every job of this sweep is refused, and nothing was begun; the first: ../model/config.json/runs/",
        ),
        (["folder=../model/config.json/run", "plan=true"], "error: ../model/config.json/run cannot be made in /"),
        (["hydra.run.dir=../model/config.json/x"], "error: '../model/config.json/x' cannot be made (Not a directory); give "),
        (["-m", "paths.runs=null", "seed=0,1"], "error: paths.runs=None must be a folder."),
    ],
)
def test_a_config_error_is_one_sentence_and_leaves_nothing_behind(tmp_path: Path, words: list[str], said: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "here").mkdir()

    done = run_py(tmp_path / "here", *words, "model=local", f"model.path={tmp_path / 'model'}")

    spoken = IMPORTS.sub("", done.stderr).strip()
    assert done.returncode != 0
    assert spoken.startswith(said)
    assert len(spoken.splitlines()) == 1
    assert not HEAVY.search(done.stderr)
    assert list((tmp_path / "here").iterdir()) == []


@pytest.mark.parametrize("error", [ConfigError("do this."), DivergedError("do this.")])
def test_an_error_of_alignlab_is_its_own_sentence(error: AlignlabError) -> None:
    assert sentence(error) == "do this."


def test_a_missing_config_without_alternatives_points_to_the_help() -> None:
    error = MissingConfigException("not found", missing_cfg_file="experiment/nothing", options=None)

    assert sentence(error) == "no config 'experiment/nothing'; `python run.py --help` lists the groups."


def test_another_error_of_hydra_is_put_on_one_line() -> None:
    assert sentence(HydraException("first\n   second")) == "first second"


def test_an_error_that_is_ours_has_no_sentence() -> None:
    assert sentence(ZeroDivisionError("oh")) is None


def test_words_go_to_stderr_alone_and_once(own_words: logging.Logger, capfd: pytest.CaptureFixture[str]) -> None:
    show_words(logging.INFO)
    show_words(logging.INFO)

    logging.getLogger("alignlab.training").info("fit: step 1/2")

    assert capfd.readouterr() == ("", "fit: step 1/2\n")


def test_status_shows_every_run_below_a_folder(
    tmp_path: Path, own_words: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    Ledger(tmp_path / "a" / "seed-0").status("done")
    Ledger(tmp_path / "a" / "seed-0").write("report.json", {})
    Ledger(tmp_path / "a" / "seed-1").status("failed", error="DivergedError: the loss is nan")

    code = main(["status", str(tmp_path)])

    first, second = capsys.readouterr().out.splitlines()
    assert code == 0
    assert first.startswith("done ")
    assert second.startswith("failed ")
    assert second.endswith("DivergedError: the loss is nan")


def test_status_of_a_folder_without_runs_is_an_error(
    tmp_path: Path, own_words: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(["status", str(tmp_path)])

    assert code == 1
    assert capsys.readouterr().err.startswith("error: no run below ")


def test_a_folder_without_a_finished_run_cannot_be_exported(
    tmp_path: Path, own_words: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    Ledger(tmp_path).status("running")

    code = main(["export", str(tmp_path), "--to", str(tmp_path / "plain")])

    assert code == 1
    assert "holds no finished run (running)" in capsys.readouterr().err
    assert not (tmp_path / "plain").exists()


def test_a_folder_above_runs_names_one_of_them(
    tmp_path: Path, own_words: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    Ledger(tmp_path / "seed-1").write("report.json", {})

    code = main(["export", str(tmp_path), "--to", str(tmp_path / "plain")])

    assert code == 1
    assert f"give the folder that has report.json in it, such as {tmp_path / 'seed-1'}." in capsys.readouterr().err


def test_hydra_uses_its_store_where_it_would_copy_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ConfigStore, "__deepcopy__", None, raising=False)

    share_config_store()

    assert copy.deepcopy(ConfigStore.instance()) is ConfigStore.instance()
