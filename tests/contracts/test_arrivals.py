"""However a policy's weights arrive, it gives the same scores and texts: no dropout is left on, of a tuner or of a backbone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM

import alignlab
from alignlab import models
from alignlab.config import RunConfig, parse
from alignlab.data.batching import whole
from alignlab.exports import export
from alignlab.models.policy import Policy
from alignlab.models.sampling import Sampling
from alignlab.models.strength import Untuned
from alignlab.planning import Plan, make_plan
from alignlab.running import open_session, policy_of, run_stages, stage_keys
from alignlab.training.references import OtherModel
from alignlab.tuners.at_strength import tuner_in
from run import run
from tests.contracts.test_methods import composed
from tests.unit.conftest import PAIRS, batch_of, encoded, session_in

DROPOUT = 0.5
LORA = ("tuner=lora", f"tuner.dropout={DROPOUT}", "tuner.rank=4")
FAST = ("learning_rate=1e-2", "warmup_fraction=0")
CASES: dict[str, tuple[str, ...]] = {
    "sft": LORA,
    "rahf": (
        *("method.variant=dual", "method.update={rank: 4, alpha: 8.0, dropout: 0.5}", f"tuner.dropout={DROPOUT}"),
        *(
            f"method.{stage}.{word}"
            for stage in ("preferred", "dispreferred")
            for word in ("epochs=null", "steps=2", "batch=8")
        ),
    ),
    "meet": ("control=lora", f"control.dropout={DROPOUT}"),
}
"""Method -> its words, with dropout in whatever has any. The backbone's own is in the config of its folder."""
STAGES = {"sft": ["fit"], "rahf": ["dispreferred", "preferred", "fit"], "meet": ["controls", "joint"]}
every_case = pytest.mark.parametrize("case", CASES)
PROMPTS = [prompt for prompt, _, _ in PAIRS[:2]]


@dataclass(frozen=True)
class Given:
    """What a policy says: log-probabilities of pairs, and texts, at two settings of its control."""

    scores: tuple[Tensor, ...]
    texts: tuple[str, ...]

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Given)
        same = all(torch.equal(one, two) for one, two in zip(self.scores, other.scores, strict=True))
        return same and self.texts == other.texts


def given_by(policy: Policy) -> Given:
    """At the ends that a control has: two classes, or the strengths 1 and 0.5."""
    sampling, controls = Sampling(max_new_tokens=8, temperature=1.0, top_p=1.0), policy.tuner.controls
    scores, texts = [], []
    for name, strength in zip(controls.names if controls else (None, None), (1.0, 0.5), strict=True):
        with torch.no_grad(), policy.under(name) if name else policy.at(strength):
            scores.append(policy.logprobs(batch_of(policy.backbone)).total_GM)
        asked = {"control": name} if name else {"strength": strength}
        texts += policy.respond(PROMPTS, sampling=sampling, seed=0, **asked)  # type: ignore[arg-type]
    return Given(tuple(scores), tuple(texts))


@dataclass(frozen=True)
class Trained:
    """A run that was trained in this process, and what it gave then; of one with a second model, what that gave too."""

    folder: Path
    words: tuple[str, ...]
    given: Given
    second: Tensor | None

    def config(self, *more: str) -> RunConfig:
        """Of the run, with other words behind its own."""
        method, *words = self.words
        return parse(composed(self.folder, method, *words, *more))


def arrive(config: RunConfig) -> tuple[Plan, Policy]:
    """The policy as a run has it when its stages are done."""
    plan = make_plan(config)
    with open_session(config) as session:
        policy = policy_of(plan, session)
        run_stages(plan, stage_keys(plan), policy, session)
    return plan, policy


def by_second(plan: Plan, policy: Policy) -> Tensor | None:
    """Log-probabilities under the second model, where a stage has trained one."""
    for stage in plan.method.stages:
        if getattr(stage, "second", None) is not None:
            with torch.no_grad(), policy.off(), stage.second.inside():  # type: ignore[attr-defined]
                return policy.logprobs(batch_of(policy.backbone)).total_GM
    return None


@pytest.fixture(scope="module")
def backbone_with_dropout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 whose config asks for dropout everywhere."""
    folder = tmp_path_factory.mktemp("model") / "gpt2"
    shutil.copytree(Path(models.__file__).parent / "tiny" / "tiny_gpt2", folder)
    config = json.loads((folder / "config.json").read_text())
    config.update(dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), DROPOUT))
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def trained(backbone_with_dropout: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """A run of a case, trained once."""
    made: dict[str, Trained] = {}

    def of(case: str) -> Trained:
        if case not in made:
            folder = tmp_path_factory.mktemp(case)
            rates = [f"method.{stage}.{word}" for stage in STAGES[case] for word in FAST]
            model = ("model=local", f"model.path={backbone_with_dropout}", "model.template={format: '{prompt}\\n', bos: true}")
            words = (case, *model, *CASES[case], *rates, "evaluation=off", "trainer.checkpoint_every_steps=1")
            plan, policy = arrive(parse(composed(folder, *words)))
            made[case] = Trained(folder, words, given_by(policy), by_second(plan, policy))
            run(composed(folder, *words))  # finds every stage done, and writes the report
        return made[case]

    return of


@every_case
def test_a_trained_policy_is_in_evaluation_mode_and_the_dropout_is_there(case: str, trained: Callable[[str], Trained]) -> None:
    _, policy = arrive(trained(case).config())

    dropouts = [module for module in policy.model.modules() if isinstance(module, torch.nn.Dropout)]
    assert {module.p for module in dropouts} == {DROPOUT, 0.0}  # the backbone's own is off
    assert not any(module.training for module in policy.model.modules())


@every_case
def test_stages_restored_from_the_run_give_the_same(case: str, trained: Callable[[str], Trained]) -> None:
    made = trained(case)

    plan, policy = arrive(made.config())

    assert given_by(policy) == made.given
    if made.second is not None:
        assert torch.equal(by_second(plan, policy), made.second)  # type: ignore[arg-type]


@every_case
def test_stages_fetched_from_the_store_give_the_same(case: str, trained: Callable[[str], Trained]) -> None:
    made = trained(case)

    plan, policy = arrive(made.config(f"folder={made.folder}/fetched"))

    assert given_by(policy) == made.given
    if made.second is not None:
        assert torch.equal(by_second(plan, policy), made.second)  # type: ignore[arg-type]


@every_case
def test_a_stage_resumed_from_a_checkpoint_gives_the_same(case: str, trained: Callable[[str], Trained], tmp_path: Path) -> None:
    made = trained(case)
    words = (f"paths.runs={tmp_path}", f"folder={tmp_path}/run", "trainer.keep_optimizer=true")
    arrive(made.config(*words))
    last = tmp_path / "run" / "stages" / STAGES[case][-1]
    shutil.rmtree(tmp_path / ".store")
    shutil.rmtree(last / "checkpoint-2")
    shutil.rmtree(last / "result")
    (last / "done.json").unlink()

    _, policy = arrive(made.config(*words))

    assert given_by(policy) == made.given


@every_case
def test_a_run_loaded_gives_the_same_and_so_it_does_when_it_has_moved(
    case: str, trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    made = trained(case)
    shutil.copytree(made.folder / "run", tmp_path / "moved")

    here, there = (alignlab.load(folder, device="cpu") for folder in (made.folder / "run", tmp_path / "moved"))

    assert given_by(here) == made.given
    assert given_by(there) == made.given


@pytest.mark.parametrize("case", ["sft", "meet"])
def test_an_adapter_loaded_by_peft_gives_the_same(
    case: str, trained: Callable[[str], Trained], backbone_with_dropout: Path
) -> None:
    made = trained(case)
    result = made.folder / "run" / "stages" / STAGES[case][-1] / "result"
    adapter, base = (result / "control", result / "lm") if (result / "lm").is_dir() else (result, backbone_with_dropout)
    backbone = alignlab.load(made.folder / "run", device="cpu").backbone

    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter)

    around = replace(backbone, model=loaded.get_base_model())
    assert not any(module.training for module in loaded.modules())
    assert given_by(Policy(around, tuner_in(loaded))) == made.given


def test_an_exported_model_gives_the_same_and_so_it_does_as_a_reference(
    trained: Callable[[str], Trained], tmp_path: Path
) -> None:
    made = trained("sft")
    backbone = alignlab.load(made.folder / "run", device="cpu").backbone
    groups = encoded(backbone)
    export(made.folder / "run", tmp_path / "plain")

    plain = Policy(replace(backbone, model=AutoModelForCausalLM.from_pretrained(tmp_path / "plain")), Untuned())
    with torch.no_grad():
        scores = plain.logprobs(whole(groups, backbone.codec.pad)).total_GM
    as_reference = OtherModel(tmp_path / "plain").added(groups, plain, session_in(tmp_path), "prefer", [range(len(groups))])

    torch.testing.assert_close(scores, made.given.scores[0], atol=1e-5, rtol=1e-5)
    assert torch.equal(torch.tensor([group.reference for group in as_reference]), scores)
    asked = {"sampling": Sampling(max_new_tokens=8, temperature=1.0, top_p=1.0), "seed": 0}
    assert tuple(plain.respond(PROMPTS, **asked)) == made.given.texts[:2]  # type: ignore[arg-type]
