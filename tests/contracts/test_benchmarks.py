"""Every benchmark runs, at its smallest size: a renamed argument stops it here and not on the day that it is needed.

What a benchmark starts in processes of its own is tried here in this one, or asked whether its words compose; the whole of
those that measure sweeps is marked long.
"""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import copytree
from types import ModuleType

import pytest
import torch
from hydra import compose, initialize_config_dir

from alignlab.config import parse
from alignlab.errors import AlignlabError
from alignlab.models.config import EMBEDDED

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """Benchmarks set the number of threads."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def benchmark(name: str) -> ModuleType:
    """A benchmark as a module."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def composes(words: list[str]) -> bool:
    """Whether run.py takes the words of a run; a sweep's lists and ranges count as their first value."""
    first = [re.sub(r"=range\(([^,)]+).*", r"=\1", word) for word in words if word not in ("-m", "plan=true")]
    first = [word if "[" in word else word.partition(",")[0] for word in first]
    with initialize_config_dir(config_dir=str(ROOT / "conf"), version_base="1.3"):
        parse(compose("run", overrides=first))
    return True


def test_every_benchmark_has_its_test() -> None:
    tried = {
        "dial",
        "gpu",
        "killed_sweep",
        "packed_rows",
        "preference_step",
        "rahf_step",
        "red_step",
        "serving",
        "startup",
        "sweep",
    }

    assert {file.stem for file in (ROOT / "benchmarks").glob("*.py")} == tried


def test_dial(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark("dial").main(["--rounds", "1", "--batches", "2", "--width", "32", "--new", "3", "--threads", "1", "--times-only"])

    said = capsys.readouterr().out
    assert "time clm / plain" in said
    assert "time clm / dera" in said
    assert "a product of 2 rows / of 1 row" in said


@pytest.mark.parametrize("side", ["plain", "clm", "two-models", "dera"])
def test_dial_knows_the_weights_of_each_side(side: str) -> None:
    module = benchmark("dial")
    held: list[torch.Tensor] = []

    module.stepper(side, 1, module.Size(32, 3, 1), held)()

    # Llama of 8 blocks of width 32: q, k, v, o, three of 32 x 88 and two norms; embeddings, head and the last norm.
    block = 4 * 32 * 32 + 3 * 32 * 88 + 2 * 32
    model = 8 * block + 2 * 4096 * 32 + 32
    counts = {"plain": model, "clm": model + block, "two-models": 2 * model, "dera": 2 * model}
    assert sum(tensor.numel() for tensor in held) == counts[side]


@pytest.mark.usefixtures("shared")
def test_packed_rows(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark("packed_rows").main(["--rows", "16", "--rounds", "1"])

    assert capsys.readouterr().out.count("packed / padded") == 2


def test_red_step(tmp_path: Path) -> None:
    copytree(EMBEDDED / "tiny_roberta", tmp_path / "models" / "minilm-l6")
    (tmp_path / "data" / "qnli").mkdir(parents=True)
    rows = [f"Tom had {number} kites.,Tom was happy.,{number % 2}" for number in range(20)]
    (tmp_path / "data" / "qnli" / "dev.csv").write_text("\n".join(["premise,hypothesis,label", *rows]) + "\n")
    words = [f"paths.models={tmp_path}/models", f"paths.data={tmp_path}/data", "method.fit.batch=4"]

    found = benchmark("red_step").measured("red", "qnli", words, 2)

    assert found["parameters"] == 4 * 2 * 96
    assert found["seconds"] > 0


def test_serving(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(name, reason="needs alignlab[serve]")

    benchmark("serving").main(
        [
            "--model",
            str(EMBEDDED / "tiny"),
            "--requests",
            "6",
            "--clients",
            "3",
            "--new",
            "4",
            "--rounds",
            "1",
            "--threads",
            "1",
        ]
    )

    assert "answers that differ: 0 of 6" in capsys.readouterr().out


def test_rahf_step(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--vocabulary", "32", "--width", "16", "--blocks", "2", "--batch", "2", "--rounds", "1", "--steps", "1"]

    benchmark("rahf_step").main([*small, "--threads", "1", "--in-one-process"])

    losses = [line.rpartition(" ")[2] for line in capsys.readouterr().out.splitlines() if "first loss" in line]
    assert len(losses) == 2
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-3)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # TRL's use of transformers
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.usefixtures("shared")
def test_preference_step(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("trl")
    module = benchmark("preference_step")

    module.main(["--pairs", "16", "--rounds", "1", "--warm-up", "0", "--threads", "1", "--in-one-process"])

    said = capsys.readouterr().out
    assert "ours-cached / trl-cached: peak_mib" in said
    difference = float(said.rpartition("training steps: ")[2].split()[0])
    assert difference < 1e-4


def test_gpu(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    benchmark("gpu").main(["--tiny", "--steps", "1", "--to", str(tmp_path / "table.md")])

    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert table.rstrip() in capsys.readouterr().out
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith(("| DPO", "| decoding"))]
    assert len(rows) == 8
    assert {len(row) for row in rows} == {6}
    assert "attention" in rows[0][-1]


def test_gpu_leaves_out_by_name_what_it_has_no_time_for(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    benchmark("gpu").main(["--tiny", "--minutes", "0", "--to", str(tmp_path / "table.md")])

    assert capsys.readouterr().out.count("left out: no time left") == 8


def test_the_words_of_startup_compose_or_are_refused_in_a_sentence() -> None:
    cases: dict[str, list[str]] = benchmark("startup").CASES

    refused = []
    for name, words in cases.items():
        try:
            composes([word for word in words if not word.startswith("-") and word != "job"])
        except AlignlabError:
            refused.append(name)
        except Exception:  # Hydra's own, of which run.py makes a sentence
            refused.append(name)
    assert refused == ["unknown choice", "unknown key", "wrong type", "misfit"]


def test_the_words_of_sweep_compose() -> None:
    module = benchmark("sweep")

    assert module.plans(20)
    assert module.SHARED
    assert all(composes([*words, *module.QUIET]) for words in [*module.plans(20).values(), *module.SHARED.values()])
    assert composes(["seed=range(8)", "method.fit.steps=1", "evaluation=off", *module.QUIET])


def test_the_words_of_killed_sweep_compose() -> None:
    module = benchmark("killed_sweep")

    assert composes([*module.GRID, *module.SETTINGS])


def test_the_hash_of_a_killed_sweeps_job_sees_its_weights(tmp_path: Path) -> None:
    module = benchmark("killed_sweep")
    job = tmp_path / "a" / "seed-0"
    (job / "stages" / "fit" / "result").mkdir(parents=True)
    (job / "status.json").write_text('{"state": "done"}')
    (job / "report.json").write_text("{}")
    weights = job / "stages" / "fit" / "result" / "weights.safetensors"
    weights.write_bytes(b"one")
    before = module.results(tmp_path)

    weights.write_bytes(b"two")

    assert before.keys() == {"a/seed-0"}
    assert module.results(tmp_path) != before


@pytest.mark.long
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sweep", ["--repeats", "1", "--jobs", "20"]),
        ("killed_sweep", ["--kills", "1", "--grid", "method=sft", "seed=0,1"]),
        ("startup", ["--runs", "1"]),
    ],
)
def test_what_starts_processes(name: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    ended: Callable[[object], None] = lambda status: None if not status else pytest.fail(f"{name} ends with {status}")  # noqa: E731
    monkeypatch.setattr(sys, "exit", ended)

    benchmark(name).main(words)
