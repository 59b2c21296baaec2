"""The card of an adapter, from the files of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from alignlab.card import Adapter, card_of, write_cards
from alignlab.tracking.ledger import Ledger
from tests.unit.made_sweeps import ENVIRONMENT, number


def trained(run: Path, peft_type: str = "RED", base: str = "alignlab/tiny", **model: object) -> Path:
    """The folder of an adapter in a run that is done."""
    folder = run / "stages" / "fit" / "result"
    Ledger(folder).write(
        "adapter_config.json", {"peft_type": peft_type, "base_model_name_or_path": base, "task_type": "CAUSAL_LM"}
    )
    (folder / "README.md").write_text("[More Information Needed]", encoding="utf-8")
    ledger = Ledger(run)
    own = {"name": "tiny", "source": "embedded", "path": "tiny", **model}
    settings = {
        "method": {"name": "sft", "fit": {"batch": 8, "steps": None}},
        "tuner": {"name": "red", "likelihood_rate": 0.05},
    }
    ledger.write("config.json", {"seed": 3, "model": own, "data": {"name": "toy", "path": "/home/ada/pairs"}, **settings})
    ledger.write("env.json", ENVIRONMENT)
    account = {"read": 1009, "kept": 1008, "dropped": {"too long": 1}, "cut": 0, "moved": 0}
    results = [number("toy/reward", 0.25, strength) for strength in (0.0, 1.0)]
    ledger.write("report.json", {"parameters": {"learned": 768, "all": 5000}, "rows": {"fit": account}, "results": results})
    return folder


def test_a_card_says_what_the_adapter_is_how_it_is_used_made_and_measured(tmp_path: Path) -> None:
    folder = trained(tmp_path)

    (path,) = write_cards(tmp_path)

    card = path.read_text(encoding="utf-8")
    head = yaml.safe_load(card.split("---\n")[1])
    assert path == folder / "README.md"
    assert head == {
        "base_model": "alignlab/tiny",
        "library_name": "peft",
        "license": "Apache-2.0",
        "tags": ["alignlab", "sft", "red"],
    }
    assert "An adapter `red`, trained by `sft` on data `toy`, with seed 3. It has 768 parameters; the base has 5,000." in card
    assert "PEFT knows the type RED after `import alignlab`; without it, loading ends with `KeyError: 'RED'`." in card
    assert 'base = AutoModelForCausalLM.from_pretrained(EMBEDDED / "tiny")' in card
    assert "alignlab.at_strength(model, 0.5)" in card
    assert "| method.fit.batch | 8 |" in card
    assert "- fit: 1,008 of 1,009 rows kept" in card
    assert "| toy/reward (n = 8) | 0.250 [-0.250, 0.750] | 0.250 [-0.250, 0.750] |" in card
    assert "Information Needed" not in card
    assert "/home/ada" not in card


def test_an_adapter_of_a_type_that_peft_knows_needs_no_import(tmp_path: Path) -> None:
    folder = trained(tmp_path, peft_type="LORA")

    card = card_of(Adapter(folder, tmp_path))

    assert "import alignlab  #" not in card
    assert "KeyError" not in card


def test_a_base_of_a_local_folder_is_named_as_a_folder(tmp_path: Path) -> None:
    folder = trained(tmp_path, base="mine", source="folder")

    card = card_of(Adapter(folder, tmp_path))

    assert 'base = AutoModelForCausalLM.from_pretrained("FOLDER OF mine")' in card


@pytest.mark.parametrize(("licence", "said"), [("llama3.1", "licence llama3.1"), (None, "whose licence is not known here")])
def test_the_licence_is_the_one_that_the_card_of_the_base_names(licence: str | None, said: str, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    if licence:
        (base / "README.md").write_text(f"---\nlicense: {licence}\n---\n# A model\n", encoding="utf-8")
    folder = trained(tmp_path / "run", base="base", source="folder", path=str(base))

    assert said in card_of(Adapter(folder, tmp_path / "run"))


def test_an_adapter_without_a_report_has_a_card_without_numbers(tmp_path: Path) -> None:
    folder = trained(tmp_path)
    (tmp_path / "report.json").unlink()

    card = card_of(Adapter(folder, tmp_path))

    assert "## Training" in card
    assert "## Results" not in card
