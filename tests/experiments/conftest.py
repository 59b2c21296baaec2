"""What the experiments' files name and a machine may lack."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree

import pytest

from alignlab.models.config import EMBEDDED


def row(task: str, place: int) -> dict[str, object]:
    """A row of a task, with its columns and each of its labels in turn."""
    if task == "sentence-polarity":
        return {"sentence": f"text {place}", "label": place % 2}
    if task == "boolq":
        return {"question": f"question {place}", "passage": f"passage {place}", "answer": bool(place % 2)}
    labels = ("entailment", "neutral", "contradiction") if task == "snli" else ("entailment", "not_entailment")
    return {"premise": f"first {place}", "hypothesis": f"second {place}", "label": labels[place % len(labels)]}


@pytest.fixture(scope="package", autouse=True)
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of models in which experiments find theirs by name; all are embedded ones, apart from a note in the config
    of the causal ones, since models count by their content."""
    folder = tmp_path_factory.getbasetemp() / "models"  # one place per process, which composed configs remember
    if not folder.exists():
        written(folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("ALIGNLAB_SHARED", str(folder / "shared"))
        patched.setenv("ALIGNLAB_MODELS", str(folder))
        patched.delenv("ALIGNLAB_DATA", raising=False)
        yield folder


def written(folder: Path) -> None:
    """Writes the models, small files of the tasks, and texts to pretrain on."""
    for name in ("stories260k", "babyllama-byte361", "smollm2-135m-instruct"):
        copytree(EMBEDDED / "tiny", folder / name)
        config = folder / name / "config.json"
        config.write_text(json.dumps({**json.loads(config.read_text()), "note": name}))
    for name in ("t5-text", "blueprints/tiny_t5"):
        copytree(EMBEDDED / "tiny_t5", folder / name)
    for text in ("wikitext-2/train.txt", "tinystories/sample.txt"):
        (folder / "shared" / "data" / text).parent.mkdir(parents=True)
        (folder / "shared" / "data" / text).write_text("Tom has a red kite.\n<|endoftext|>\n" * 3)
    tasks = {"sentence-polarity": "all", "qnli": "dev", "snli": "dev", "boolq": "dev", "copa": "train", "wnli": "train"}
    for task, file in tasks.items():
        below = folder / "shared" / "data" / task
        below.mkdir(parents=True)
        for name in {file, "test" if file != "train" else "dev"}:
            lines = [row(task, place) for place in range(24)]
            (below / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
