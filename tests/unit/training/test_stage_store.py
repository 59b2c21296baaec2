"""Finished stages are kept once, whole, and put into other runs as if they had done them."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from threading import Event, Thread

import pytest

from alignlab.files import seal
from alignlab.training.stages import DONE, StageStore, of_result

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
    seal(stage, DONE, {"key": KEY}, of_result)
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
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == [KEY]


def test_a_full_disk_keeps_nothing_and_stops_no_run(store: StageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
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


@pytest.mark.parametrize("damage", ["cut", "other", "gone", "link"])
def test_a_damaged_entry_is_named_and_replaced_by_the_stage_that_is_computed_again(
    damage: str, store: StageStore, tmp_path: Path
) -> None:
    kept(store, tmp_path / "a")
    entry = tmp_path / "store" / KEY
    config = entry / "result" / "adapter_config.json"
    content = config.read_bytes()
    config.unlink()
    if damage == "link":
        config.symlink_to(tmp_path / "a" / "stages" / "fit" / "result" / "adapter_config.json")
    elif damage != "gone":
        config.write_bytes({"cut": content[:-1], "other": content[:-1] + b" "}[damage])

    named = store.damage(KEY)
    kept(store, tmp_path / "c")

    assert "result/adapter_config.json" in named
    assert store.damage(KEY) == ""
    assert config.read_bytes() == content


def test_an_entry_whose_mark_names_files_outside_is_none(store: StageStore, tmp_path: Path) -> None:
    kept(store, tmp_path / "a")
    mark = tmp_path / "store" / KEY / DONE
    listed = json.loads(mark.read_text())
    (tmp_path / "secret").write_text("s")
    mark.write_text(json.dumps({**listed, "files": {"../../secret": "1 0"}}))

    assert store.damage(KEY) == "done.json cannot be read"


def test_what_a_dead_job_had_begun_to_keep_is_removed_by_the_next(store: StageStore, tmp_path: Path) -> None:
    left = tmp_path / "store" / f"{KEY}.abc.part"
    left.mkdir(parents=True)

    with store.alone(KEY):
        assert not left.exists()
