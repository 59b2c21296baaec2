"""A finished run as a folder for the hub: the adapter, its card, its measurements, and the function that generates with it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import yaml
from huggingface_hub import HfApi, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from alignlab.card import AUTO, NOTES, Adapter, licence_of, results, training
from alignlab.command_line import CONF
from alignlab.config import found_place
from alignlab.errors import ModelError, RunFolderError
from alignlab.evaluation.safe_range import FILE as SAFE_RANGE
from alignlab.evaluation.safe_range import SafeRange, read_range
from alignlab.finished import config_of, result_of
from alignlab.models.export import whole_folder
from alignlab.tracking.ledger import REPORT, Ledger, state_of
from alignlab.tuners.at_strength import turns
from alignlab.tuners.engines import CONFIG, TENSORS

PICTURES = ("dial.png", "curves.png")
BASE = "base"
"""Subfolder with the backbone, where the run has trained it."""
TASKS = {"CAUSAL_LM": "text-generation", "SEQ_2_SEQ_LM": "text2text-generation", "SEQ_CLS": "text-classification"}
"""PEFT's kind of task -> the hub's."""
NOT_REPEATED = ("paths", "folder", "force", "rerun", "plan", "sweep", "sizing", "launch", "hydra", "tracking")
"""Keys of a config that say where and when, and not what."""
GROUPS_FIRST = ("method", "tuner", "model", "data", "control", "evaluation", "trainer")
"""Groups in the order of a command line."""
GENERATE = '''"""Generates at a strength, or under a class.

model.generate(..., custom_generate=REPO, trust_remote_code=True, strength=1.5)
"""


def generate(model, strength=1.0, control=None, streamer=None, **given):
    """`strength`: one number, or one per prompt; `control`: likewise the name of a class, where the adapter has any."""
    from alignlab import at_class, at_strength

    if control is None:
        decoding = at_strength(model, strength, streamer=streamer)
    else:
        decoding = at_class(model, control, streamer=streamer)
    return model.generate(custom_generate=decoding, **given)
'''


def push(run: Path, repo: str, to: Path | None = None, *, license: str | None = None, private: bool = False) -> str:
    """Uploads a run to a repository of the hub, made where it does not exist; returns its address. `to`: writes the folder
    there instead, uploads nothing, and returns the path.

    Raises RunFolderError for a run that is not finished, ModelError for one without an adapter, for a name that no repository
    can have, and where the hub refuses.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ModelError(
            f"{repo!r} names no repository of the hub; give OWNER/NAME, of letters, digits, -, _ and dots."
        ) from error
    if to is not None:
        write_folder(run, to, repo, license)
        return str(to)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        write_folder(run, folder, repo, license or _license_on_hub(run))
        try:
            api = HfApi()
            address = api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=repo, folder_path=folder, commit_message=f"alignlab run {Ledger(run).found(REPORT).get('fingerprint')}"
            )
        except (HfHubHTTPError, OSError) as error:
            first = str(error).strip().partition("\n")[0]
            raise ModelError(
                f"{repo} was not written ({first}); log in with `hf auth login`, or write a folder: --dry-run --to FOLDER."
            ) from error
    return str(address)


def write_folder(run: Path, to: Path, repo: str, license: str | None = None) -> None:
    """Writes what `push` uploads; the whole folder appears, or nothing. `license`: of the base, as the hub names it; None: as
    the base's own card says, where it is a folder here. Raises as `push`."""
    if state_of(run).name != "done":
        raise RunFolderError(f"{run} holds no finished run ({state_of(run).name}); give the folder that has {REPORT} in it.")
    adapter = result_of(run)
    if not (adapter / CONFIG).is_file():
        raise ModelError(
            f"{run} has trained weights of the backbone and no adapter; export it as plain, and upload that folder."
        )
    if to.exists() and any(to.iterdir()):
        raise ModelError(f"{to} already holds files; give a new folder.")
    with whole_folder(to) as scratch:
        _fill(run, adapter, scratch, repo, license)


def _fill(run: Path, adapter: Path, folder: Path, repo: str, license: str | None) -> None:
    config = without_places(config_of(run), run)
    described = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    base = described.get("base_model_name_or_path") or ""
    trained = adapter / base if base.startswith(".") else None
    if trained is not None:  # by this run, so it travels along
        shutil.copytree(trained, folder / BASE, ignore=shutil.ignore_patterns("adapter_*", "README.md"))
        described["base_model_name_or_path"] = f"{repo}/{BASE}"
    shutil.copyfile(adapter / TENSORS, folder / TENSORS)
    (folder / CONFIG).write_text(json.dumps(described, indent=2) + "\n", encoding="utf-8")
    for name in (SAFE_RANGE, *PICTURES, REPORT):
        for place in (adapter / name, run / name):
            if place.is_file():
                shutil.copyfile(place, folder / name)
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    if turns(str(described.get("peft_type"))):
        (folder / "custom_generate").mkdir()
        (folder / "custom_generate" / "generate.py").write_text(GENERATE, encoding="utf-8")
        (folder / "custom_generate" / "requirements.txt").write_text("alignlab\n", encoding="utf-8")
    license = license or licence_of(Adapter(adapter, run))
    (folder / "README.md").write_text(_card(run, config, folder, repo, trained is not None, license), encoding="utf-8")


def _card(run: Path, config: Mapping[str, Any], folder: Path, repo: str, own_base: bool, license: str | None) -> str:
    """The card, with what it takes to load the adapter from the repository and to repeat the run. `own_base`: it is in BASE."""
    adapter = Adapter(folder, run)
    about = ModelCardData(
        base_model=None if own_base else adapter.base,
        library_name="peft",
        pipeline_tag=TASKS.get(str(adapter.config.get("task_type"))),
        license=license.lower() if license else None,
        tags=["alignlab", adapter.chosen("method"), adapter.chosen("tuner"), adapter.chosen("data")],
    )
    counted = adapter.report.get("parameters", {})
    dial, curves = (
        f"![{what}]({name})" if (folder / name).is_file() else ""
        for name, what in zip(PICTURES, ("metrics against strength", "curves of training"), strict=True)
    )
    what = f"method `{adapter.chosen('method')}`, tuner `{adapter.chosen('tuner')}`, trained on `{adapter.chosen('data')}`"
    sections = [
        f"---\n{about.to_yaml()}\n---",
        f"# {repo.rpartition('/')[2]}",
        f"An adapter by alignlab: {what}. It learned {counted.get('learned', 0):,} of {counted.get('all', 0):,} parameters.",
        _use(config, adapter, repo, own_base),
        _strength(read_range(folder), adapter),
        dial,
        results(adapter),
        training(adapter),
        curves,
        "`config.yaml` holds every setting. The command that repeats the run, with data and models in place of `PATH/`:\n\n"
        f"    {command(config)}",
        f"## Licence\n\n{_licence(adapter.base, own_base, license)}",
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _use(config: Mapping[str, Any], adapter: Adapter, repo: str, own_base: bool) -> str:
    """How it is loaded, and asked."""
    auto = AUTO.get(str(adapter.config.get("task_type")), "AutoModel")
    embedded = config["model"].get("source") == "embedded" and not own_base
    place = f'EMBEDDED / "{adapter.base.rpartition("/")[2]}"' if embedded else f'"{adapter.base}"'
    load = f'"{repo}", subfolder="{BASE}"' if own_base else place
    classes = adapter.config.get("classes")
    asked = f'control="{classes[0]}"' if classes else "strength=1.0"
    own = f'custom_generate="{repo}", trust_remote_code=True, {asked}, ' if turns(str(adapter.config.get("peft_type"))) else ""
    generated = f"model.generate(**inputs, {own}max_new_tokens=64)"
    template = config["model"]["template"]
    written = str(template.get("format") or "{prompt}")
    lines = [
        "```python",
        "from peft import PeftModel",
        f"from transformers import {auto}, AutoTokenizer",
        "",
        "import alignlab  # after peft, with which it registers its adapters",
        *(["from alignlab.models.config import EMBEDDED  # the base comes with it"] if embedded else []),
        "",
        f'base = {auto}.from_pretrained({load}, dtype="{config["model"]["dtype"]}")',
        f"tokenizer = AutoTokenizer.from_pretrained({load})",
        f'model = PeftModel.from_pretrained(base, "{repo}").eval()',
        f'inputs = tokenizer({written.replace("{prompt}", "Tell a story.")!r}, return_tensors="pt")',
        "model(**inputs).logits" if auto == AUTO["SEQ_CLS"] else generated,
        "```",
    ]
    behind = "behind the token that begins a text" if template.get("bos") else "without a token that begins a text"
    how = (
        "Prompts are written with the tokenizer's chat template."
        if template.get("format") is None
        else f"In training prompts were written as `{json.dumps(written)}`, {behind}; write them so."
    )
    return "\n".join(["## Use", "", *lines, "", how])


def _strength(safe: SafeRange | None, adapter: Adapter) -> str:
    """What the strength or the class does, and where it was seen to hold."""
    kind = str(adapter.config.get("peft_type"))
    if classes := adapter.config.get("classes"):
        return f"## Classes\n\nIt has {', '.join(classes)} in place of a strength; `none` is the model without any."
    turn = "0 is the base, 1 the trained model; other numbers lie between and beyond."
    if not turns(kind):
        turn += f" {NOTES[kind]}"
    if safe is None:
        return f"## Strength\n\n{turn} No range of strengths was measured to hold."
    points = "\n".join(
        f"| {point.strength:g} | {point.value:.3f} | {point.worse:+.3f} | {_interval(point.low, point.high)} | {point.n} |"
        f" {'yes' if point.holds else 'no'} |"
        for point in safe.points
    )
    head = f"| strength | {safe.metric} | worse by | 95 % interval | n | holds |\n|---|---|---|---|---|---|"
    return f"## Strength\n\n{turn} {safe.sentence[0].upper()}{safe.sentence[1:]}.\n\n{head}\n{points}"


def _interval(low: float | None, high: float | None) -> str:
    return "no interval" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def _licence(base: str, own_base: bool, license: str | None) -> str:
    named = "the backbone in `base/`, which this run trained further" if own_base else f"its base, {base}"
    if license is None:
        return f"An adapter is of no use without {named}; that one's licence is not known here, and holds for what it makes."
    return f"The licence of {named}, is `{license}`, and holds for what it makes with the adapter."


def command(config: Mapping[str, Any]) -> str:
    """The command line that composes a config: its choices, and every value in which they differ from it."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    chosen = [f"{group}={config[group]['name']}" for group in GROUPS_FIRST if group in config]
    with initialize_config_dir(str(CONF.resolve()), version_base="1.3"):
        composed = OmegaConf.to_container(compose("run", chosen), resolve=False)
    usual = dict(_flat(cast("dict[str, Any]", composed)))
    words = [
        f"{'' if key in usual else '++'}{key}={_word(value)}"
        for key, value in _flat(config)
        if key.partition(".")[0] not in NOT_REPEATED and (key not in usual or usual[key] != value)
    ]
    return " ".join(["alignlab run", *chosen, *map(_quoted, words)])


def _flat(config: Mapping[str, Any], front: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{front}{key}.")
        else:
            yield f"{front}{key}", value


def _word(value: Any) -> str:
    """A value as Hydra reads it."""
    plain = isinstance(value, str) and value and all(letter.isalnum() or letter in "_-./" for letter in value)
    return str(value) if plain else json.dumps(value)


def _quoted(word: str) -> str:
    return f"'{word}'" if any(letter in word for letter in ' "[]{}$*?;&|<>()') else word


def without_places(value: Any, run: Path) -> Any:
    """A config in which the paths of this machine are left out but for their last names."""
    if isinstance(value, Mapping):
        return {key: without_places(inner, run) for key, inner in value.items() if key != "paths"}
    if isinstance(value, list):
        return [without_places(inner, run) for inner in value]
    if isinstance(value, str) and (value.startswith(("/", "~", "../")) or found_place(value, run) != value):
        return f"PATH/{Path(value).name}"
    return value


def _license_on_hub(run: Path) -> str | None:
    """The licence of a base of the hub, from its card; None where it cannot be asked."""
    model = config_of(run)["model"]
    if model.get("source") == "embedded" or Path(found_place(str(model.get("path")), run)).is_dir():
        return None
    with suppress(HfHubHTTPError, HFValidationError, OSError):
        data = HfApi().model_info(str(model.get("path"))).card_data
        return data.license if data else None
    return None
