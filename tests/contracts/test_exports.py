"""A finished run for other engines: what PEFT and llama.cpp's files hold is what the run answers at each strength."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import alignlab
from alignlab.__main__ import main
from alignlab.errors import AlignlabError, ControlError, ModelError
from alignlab.exports import export
from alignlab.models.config import EMBEDDED
from run import run
from tests.contracts.test_methods import composed

FORMS: dict[str, tuple[str, ...]] = {
    "lora": ("sft", "tuner=lora", "tuner.rank=2", "method.fit.learning_rate=1e-1"),
    "shift": ("red", "tuner.edit=shift", "method.fit.learning_rate=1e-2"),
    "red": ("red", "method.fit.learning_rate=1e-2"),
    "clm": ("clm",),
}
IDS = torch.arange(4, 36).reshape(2, 16)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a run, trained once."""
    folders: dict[str, Path] = {}

    def of(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            run(composed(folders[name], *FORMS[name], "evaluation=off"))
        return folders[name] / "run"

    return of


loaded = lru_cache(maxsize=None)(alignlab.load)


def logits_at(folder: Path, strength: float) -> Tensor:
    """Of the run itself."""
    policy = loaded(folder, device="cpu")
    with torch.no_grad(), policy.tuner.at(strength):
        logits: Tensor = policy.backbone.model(IDS).logits
    return logits


def backbone() -> Any:
    return AutoModelForCausalLM.from_pretrained(EMBEDDED / "tiny", dtype=torch.float32).eval()


def test_a_lora_folder_per_strength_loads_in_peft_and_answers_as_the_run(
    made: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made("lora")

    status = main(["export", str(folder), "--to", str(tmp_path / "out"), "--as", "lora", "--strength", "0", "-0.5", "1", "1.5"])

    assert status == 0
    said = [line.partition(": ")[2] for line in capsys.readouterr().out.splitlines() if line.startswith("exported to ")]
    assert [line.partition("; largest difference of logits ")[0] for line in said] == [
        f"lora, strength {strength}, float32" for strength in ("0", "-0.5", "1", "1.5")
    ]
    for strength, name in ((0.0, "0"), (-0.5, "-0.5"), (1.0, "1"), (1.5, "1.5")):
        peft = PeftModel.from_pretrained(backbone(), tmp_path / "out" / f"strength-{name}").eval()
        with torch.no_grad():
            torch.testing.assert_close(peft(IDS).logits, logits_at(folder, strength), rtol=1e-5, atol=1e-5)
    config = json.loads((tmp_path / "out" / "strength-1.5" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (2, loaded(folder, device="cpu").tuner.module.active_peft_config.lora_alpha)  # type: ignore[attr-defined]


def test_a_plain_checkpoint_at_a_strength_answers_as_the_run_at_it(made: Callable[[str], Path], tmp_path: Path) -> None:
    (written,) = export(made("red"), tmp_path / "plain", strengths=[0.5])

    assert written.difference <= 1e-4
    card = (tmp_path / "plain" / "README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(card.split("---\n")[1]) == {
        "base_model": "alignlab/tiny",
        "library_name": "transformers",
        "license": "Apache-2.0",
        "tags": ["alignlab", "red"],
    }
    assert (
        "An export (plain, strength 0.5, float32) of the run that is told here: `red`, trained by `red` on data `toy`" in card
    )
    assert '`AutoModelForCausalLM.from_pretrained("FOLDER OF THIS CARD")` loads it, without alignlab.' in card
    assert "- fit: 24 of 24 rows kept" in card
    assert str(tmp_path) not in card
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    with torch.no_grad():
        torch.testing.assert_close(plain(IDS).logits, logits_at(made("red"), 0.5), rtol=1e-5, atol=1e-5)


def test_what_has_no_such_form_is_refused_in_a_sentence_and_leaves_nothing(made: Callable[[str], Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    asked: list[tuple[str, str, list[float], type[AlignlabError], str]] = [
        ("red", "lora", [], ModelError, "a RED adapter has no LoRA form.*plain or gguf"),
        ("clm", "plain", [0.5], ControlError, "strength 0.5 of this run mixes passes at the logits"),
        ("red", "control-vector", [1.5], ControlError, "leave --strength out"),
        ("lora", "lora", [float("nan")], ControlError, "not finite"),
    ]

    for name, form, strengths, kind, sentence in asked:
        with pytest.raises(kind, match=sentence):
            export(made(name), out, form, strengths=strengths)

    assert not out.exists()


class TestGguf:
    """Files for llama.cpp, read with the package that llama.cpp's own scripts write them with."""

    @pytest.fixture(autouse=True)
    def gguf(self) -> Any:
        return pytest.importorskip("gguf", reason="the package gguf is not installed (alignlab[gguf])")

    def test_a_merged_model_holds_the_weights_at_the_strength_in_llamas_order(
        self, gguf: Any, made: Callable[[str], Path], tmp_path: Path
    ) -> None:
        (written,) = export(made("red"), tmp_path / "out", "gguf", strengths=[1.5])

        assert written.place == tmp_path / "out" / "model.gguf"
        reader = gguf.GGUFReader(str(written.place))
        found = {tensor.name: torch.tensor(tensor.data) for tensor in reader.tensors}
        tensors = load_file(made("red") / "stages" / "fit" / "result" / "adapter_model.safetensors")
        front, model = "base_model.model.model.layers.2.mlp.down_proj.red_edit", backbone()
        scale, layer = 1 + 1.5 * (tensors[f"{front}.scale"] - 1), model.model.layers[2]
        torch.testing.assert_close(found["blk.2.ffn_down.weight"], layer.mlp.down_proj.weight * scale[:, None])
        torch.testing.assert_close(found["blk.2.ffn_down.bias"], 1.5 * tensors[f"{front}.shift"])
        # llama.cpp turns neighbours, transformers halves: rows 0, 12, 1, 13, ... of a head of 24.
        order = [head * 24 + half * 12 + row for head in range(4) for row in range(12) for half in range(2)]
        assert torch.equal(found["blk.2.attn_q.weight"], layer.self_attn.q_proj.weight[order])
        assert "output.weight" not in found  # tied
        assert reader.fields["llama.attention.head_count"].contents() == 4

    def test_a_lora_for_llama_cpp_is_the_update_at_the_strength(
        self, gguf: Any, made: Callable[[str], Path], tmp_path: Path
    ) -> None:
        export(made("lora"), tmp_path / "out", "lora", strengths=[1.5])

        reader = gguf.GGUFReader(str(tmp_path / "out" / "adapter.gguf"))
        found = {tensor.name: torch.tensor(tensor.data) for tensor in reader.tensors}
        layer: Any = loaded(made("lora"), device="cpu").model.model.layers[1].mlp.down_proj
        alpha = reader.fields["adapter.lora.alpha"].contents()
        update = found["blk.1.ffn_down.weight.lora_b"] @ found["blk.1.ffn_down.weight.lora_a"] * alpha / 2
        torch.testing.assert_close(update, 1.5 * layer.get_delta_weight("default"))

    def test_a_shift_is_a_control_vector_but_for_block_0(self, gguf: Any, made: Callable[[str], Path], tmp_path: Path) -> None:
        (written,) = export(made("shift"), tmp_path / "out", "control-vector")

        found = {tensor.name: torch.tensor(tensor.data) for tensor in gguf.GGUFReader(str(written.place)).tensors}
        tensors = load_file(made("shift") / "stages" / "fit" / "result" / "adapter_model.safetensors")
        assert found.keys() == {"direction.1", "direction.2", "direction.3"}
        for block in (1, 2, 3):
            name = f"base_model.model.model.layers.{block}.mlp.down_proj.red_edit.shift"
            assert torch.equal(found[f"direction.{block}"], tensors[name])
        assert "block 0's shift" in written.note
        assert written.difference > 1e-5

    def test_a_shift_without_block_0_is_the_whole_adapter(self, gguf: Any, made: Callable[[str], Path], tmp_path: Path) -> None:
        run(composed(tmp_path, *FORMS["shift"], r"tuner.targets='.*layers\.[1-3]\.mlp\.down_proj'", "evaluation=off"))

        (written,) = export(tmp_path / "run", tmp_path / "out", "control-vector")

        assert written.difference <= 1e-5
        assert "block 0" not in written.note

    def test_a_scale_and_a_shift_elsewhere_are_no_control_vector(
        self, gguf: Any, made: Callable[[str], Path], tmp_path: Path
    ) -> None:
        with pytest.raises(ModelError, match="holds no scale, and this adapter learned edit=both"):
            export(made("red"), tmp_path / "out", "control-vector")
        adapter = made("shift") / "stages" / "fit" / "result"
        elsewhere = {
            name.replace("mlp.down_proj", "self_attn.o_proj"): held
            for name, held in load_file(adapter / "adapter_model.safetensors").items()
        }
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "adapter_config.json").write_text((adapter / "adapter_config.json").read_text())
        save_file(elsewhere, tmp_path / "a" / "adapter_model.safetensors")

        from alignlab.tuners.engines import control_vector

        with pytest.raises(ModelError, match=r"also shifts model.layers.0.self_attn.o_proj, whose output is not added"):
            control_vector(tmp_path / "a", backbone().config, tmp_path / "vector.gguf")

        assert not (tmp_path / "out").exists()
