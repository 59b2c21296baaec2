"""The command: what it takes, what it refuses before anything is loaded, and how it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from alignlab import __main__ as command_line
from alignlab.commands import serve
from run import run
from tests.contracts.test_methods import composed


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The sentence with which the command ends."""
    assert command_line.main(["serve", *words]) == 1
    return capsys.readouterr().err


def test_without_the_extra_it_says_what_to_install(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda name: None)

    assert "pip install 'alignlab[serve]'" in refused(capsys, "runs/some")
    assert "fastapi, uvicorn, openai, gradio; pip install 'alignlab[ui]'" in refused(capsys, "runs/some", "--ui")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extra, as far as the command looks."""
    monkeypatch.setattr(serve, "find_spec", lambda name: name)


@pytest.mark.usefixtures("installed")
def test_two_models_of_one_name_and_a_key_that_is_none_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key").write_text(" \n")

    assert "model 'a' is named twice" in refused(capsys, "a=one", "a=two")
    assert "model 'a+a' is named twice" in refused(capsys, "a=one+a=two")
    assert "must be ASCII text, and not empty" in refused(capsys, "a", "--key-file", str(tmp_path / "key"))
    assert "cannot be read" in refused(capsys, "a", "--key-file", str(tmp_path / "none"))
    monkeypatch.setenv(serve.KEY, "schl\u00fcssel")
    assert serve.KEY in refused(capsys, "a")


def test_a_run_has_the_name_that_it_is_given_or_its_folder(tmp_path: Path) -> None:
    (tmp_path / "lr=1").mkdir()

    (tmp_path / "a+b=c").mkdir()

    alone = serve._named(["red=runs/red/seed-0", "runs/clm/seed-0/", f"{tmp_path}/lr=1", f"plus={tmp_path}/a+b=c"])

    assert alone == {
        "red": {"red": Path("runs/red/seed-0")},
        "runs/clm/seed-0": {"runs/clm/seed-0": Path("runs/clm/seed-0")},
        f"{tmp_path}/lr=1": {f"{tmp_path}/lr=1": tmp_path / "lr=1"},
        "plus": {"plus": tmp_path / "a+b=c"},
    }
    assert serve._named(["a=1", "a=1+b=2"]) == {"a": {"a": Path("1")}, "a+b": {"a": Path("1"), "b": Path("2")}}


def test_an_address_that_is_taken_is_refused() -> None:
    with serve._listening("127.0.0.1", 0) as taken, pytest.raises(serve.ConfigError, match="--port"):
        serve._listening("127.0.0.1", taken.getsockname()[1])


@pytest.mark.slow
def test_a_run_is_served_and_sigterm_lets_an_answer_end(tmp_path: Path) -> None:
    openai = pytest.importorskip("openai", reason="needs alignlab[serve]")
    for name in ("fastapi", "uvicorn"):
        pytest.importorskip(name, reason="needs alignlab[serve]")
    run(composed(tmp_path, "red", "evaluation=off"))
    words = [sys.executable, "-m", "alignlab", "serve", f"red={tmp_path}/run", "--port", "0"]
    environment = {**os.environ, serve.KEY: "secret", "OMP_NUM_THREADS": "1"}

    with subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        address = next(line for line in process.stderr if line.startswith("serving red on ")).split()[-1]
        with openai.OpenAI(base_url=address, api_key="secret") as client:
            pieces = client.completions.create(model="red", prompt="Tom", max_tokens=60, temperature=0, stream=True)
            begun = next(pieces)
            process.send_signal(signal.SIGTERM)
            rest = list(pieces)
        assert process.wait(60) == 0

    assert begun.choices[0].finish_reason is None
    assert rest[-1].choices[0].finish_reason in ("stop", "length")
