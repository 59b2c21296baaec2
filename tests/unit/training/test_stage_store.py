"""Finished stages are kept once, whole, and put into other runs as if they had done them."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from threading import Event, Thread

import pytest

from alignlab.training.stages import StageStore

KEY = "0123456789abcdef"
FILES = ("weights.safetensors", "adapter_config.json")


def finished_stage(run: Path) -> Path:
    """A stage's folder as a run leaves it: a result that names its base beside it, a checkpoint, and done.json."""
    stage = run / "stages" / "fit"
    (stage / "result").mkdir(parents=True)
    (stage / "result" / "weights.safetensors").write_bytes(b"weights")
    (stage / "result" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "../../sft/result"}))
    (stage / "checkpoint-2").mkdir()
    (stage / "checkpoint-2" / "optimizer.pt").write_bytes(b"much")
    (stage / "done.json").write_text("{}")
    return stage


@pytest.fixture
def store(tmp_path: Path) -> StageStore:
    return StageStore(tmp_path / "store")


def kept(store: StageStore, run: Path) -> None:
    with store.alone(KEY):
        store.keep(KEY, finished_stage(run))


def test_a_kept_stage_is_put_into_another_run_without_its_checkpoints(store: StageStore, tmp_path: Path) -> None:
    kept(store, tmp_path / "a")

    store.fetch(KEY, tmp_path / "b" / "stages" / "fit")

    files = {str(file.relative_to(tmp_path / "b")) for file in (tmp_path / "b").rglob("*") if file.is_file()}
    results = {"stages/fit/result/weights.safetensors", "stages/fit/result/adapter_config.json"}
    assert files == {*results, "stages/fit/done.json"}


def test_files_are_what_the_first_run_wrote(store: StageStore, tmp_path: Path) -> None:
    kept(store, tmp_path / "a")
    config = Path("stages", "fit", "result", "adapter_config.json")

    store.fetch(KEY, tmp_path / "b" / "stages" / "fit")

    assert (tmp_path / "b" / config).read_bytes() == (tmp_path / "a" / config).read_bytes()


def test_what_a_killed_attempt_left_in_the_runs_folder_is_replaced(store: StageStore, tmp_path: Path) -> None:
    kept(store, tmp_path / "a")
    half = tmp_path / "b" / "stages" / "fit"
    (half / "checkpoint-1").mkdir(parents=True)

    store.fetch(KEY, half)

    assert not (half / "checkpoint-1").exists()
    assert (half / "result" / "weights.safetensors").read_bytes() == b"weights"


def test_a_stage_that_is_kept_twice_is_the_first_one(store: StageStore, tmp_path: Path) -> None:
    kept(store, tmp_path / "a")
    kept(store, tmp_path / "c")

    assert store.holds(KEY)
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [KEY, f"{KEY}.lock"]


def test_a_full_disk_keeps_nothing_and_stops_no_run(store: StageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    stage = finished_stage(tmp_path / "run")
    monkeypatch.setattr("alignlab.training.stages.shutil.copyfile", full)

    with store.alone(KEY):
        store.keep(KEY, stage)

    assert not store.holds(KEY)
    assert list(tmp_path.rglob("*.part")) == []
    assert (stage / "done.json").is_file()


def test_nothing_is_held_before_it_was_kept(store: StageStore) -> None:
    assert not store.holds(KEY)


def test_a_second_job_waits_for_the_first_and_then_finds_its_stage(store: StageStore, tmp_path: Path) -> None:
    inside, order = Event(), []

    def second() -> None:
        inside.wait()
        with store.alone(KEY):
            order.append("found" if store.holds(KEY) else "computed")

    other = Thread(target=second)
    other.start()
    with store.alone(KEY):
        inside.set()
        other.join(0.2)
        order.append("computed")
        store.keep(KEY, finished_stage(tmp_path / "a"))
    other.join(5)

    assert order == ["computed", "found"]


def test_a_job_that_fails_lets_the_next_one_compute(store: StageStore) -> None:
    with pytest.raises(RuntimeError), store.alone(KEY):
        raise RuntimeError

    with store.alone(KEY):
        assert not store.holds(KEY)


def test_weights_are_links_and_what_a_run_may_write_again_is_a_copy(store: StageStore, tmp_path: Path) -> None:
    kept(store, tmp_path / "a")

    store.fetch(KEY, tmp_path / "b" / "stages" / "fit")

    places = [folder / "stages" / "fit" / "result" for folder in (tmp_path / "a", tmp_path / "b")]
    weights, configs = ({(place / name).stat().st_ino for place in places} for name in FILES)
    assert (len(weights), len(configs)) == (1, 2)
