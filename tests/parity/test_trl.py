"""Our objectives on pairs and TRL's, an independent implementation, on the same pairs and the same weights."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForSequenceClassification

from alignlab.records import Batch
from alignlab.training.objectives import PreferenceLoss, RewardLoss
from tests.conftest import backbone
from tests.contracts.table import PAIRS, Case, attach, batch, logits, trained

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]

CASE = Case("lora", "llama", {"rank": 4, "alpha": 8.0, "dropout": 0.0, "targets": []})
CLM = {"blocks": 1, "start": "identity", "merge": "logits", "targets": None, "writes": None}
BETA = 0.3
# our loss, smoothing, length norm, TRL's name; TRL averages over tokens for ipo and nowhere else
LOSSES = [
    ("sigmoid", 0.0, "sum", "sigmoid"),
    ("ipo", 0.0, "mean", "ipo"),
    ("hinge", 0.0, "sum", "hinge"),
    ("robust", 0.1, "sum", "robust"),
    ("sigmoid", 0.0, "mean", "sigmoid_norm"),
    ("apo_zero", 0.0, "sum", "apo_zero"),
]
every_loss = pytest.mark.parametrize(("loss", "smoothing", "norm", "theirs"), LOSSES, ids=lambda value: str(value))


def trl_trainer(policy: Any, tmp_path: Path) -> Any:
    """TRL's trainer over the very model of a policy, with the adapter switched off as its reference."""
    trainer = with_copied_reference(policy, tmp_path)
    # Given a trained adapter, TRL takes a copy of it as the reference; without the copy it takes the backbone, as we do.
    trainer.model.delete_adapter("ref")
    return trainer


def with_copied_reference(policy: Any, tmp_path: Path) -> Any:
    """TRL's trainer as it comes."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    rows = [{"prompt": f"{prompt}\n", "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in PAIRS]
    config = DPOConfig(
        output_dir=str(tmp_path),
        beta=BETA,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        disable_tqdm=True,
        per_device_train_batch_size=len(rows),
    )
    return DPOTrainer(
        model=policy.tuner.module,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=policy.backbone.codec.tokenizer,
    )


def with_bos(trainer: Any) -> dict[str, Tensor]:
    """TRL's batch of all rows; our template puts BOS in front, the toy tokenizer leaves that to the template."""
    rows = [{**row, "prompt_ids": [1, *row["prompt_ids"]]} for row in trainer.train_dataset]
    return dict(trainer.data_collator(rows))


@every_loss
def test_the_loss_on_a_tiny_model_equals_trl(loss: str, smoothing: float, norm: str, theirs: str, tmp_path: Path) -> None:
    policy = trained(CASE, backbone("llama"))
    trainer = trl_trainer(policy, tmp_path)
    trainer.loss_types, trainer.loss_weights, trainer.label_smoothing = [theirs], [1.0], smoothing

    ours = PreferenceLoss(loss, BETA, smoothing, norm, "base", 0.0)(policy, batch(policy)).value
    expected = trainer._compute_loss(trainer.model, with_bos(trainer), False)

    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


@every_loss
def test_the_gradient_on_a_tiny_model_equals_trl(loss: str, smoothing: float, norm: str, theirs: str, tmp_path: Path) -> None:
    policy = trained(CASE, backbone("llama"))
    trainer = trl_trainer(policy, tmp_path)
    trainer.loss_types, trainer.loss_weights, trainer.label_smoothing = [theirs], [1.0], smoothing
    learned = policy.tuner.parameters()  # type: ignore[attr-defined]

    ours = PreferenceLoss(loss, BETA, smoothing, norm, "base", 0.0)(policy, batch(policy)).value
    mine = torch.autograd.grad(ours, learned)
    expected = torch.autograd.grad(trainer._compute_loss(trainer.model, with_bos(trainer), False), learned)

    for gradient, other in zip(mine, expected, strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_loss_and_the_gradient_of_a_clm_block_equal_trl(kind: str, tmp_path: Path) -> None:
    policy = trained(Case("clm", kind, CLM), backbone(kind))
    trainer = trl_trainer(policy, tmp_path)
    learned = policy.tuner.parameters()  # type: ignore[attr-defined]

    ours = PreferenceLoss("sigmoid", BETA, 0.0, "sum", "base", 0.0)(policy, batch(policy)).value
    expected = trainer._compute_loss(trainer.model, with_bos(trainer), False)

    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    for gradient, other in zip(torch.autograd.grad(ours, learned), torch.autograd.grad(expected, learned), strict=True):
        torch.testing.assert_close(gradient, other, atol=1e-4, rtol=1e-4)


def test_trl_finds_every_tensor_of_a_trained_clm_block_when_it_copies_the_reference(tmp_path: Path) -> None:
    policy = trained(Case("clm", "llama", CLM), backbone("llama"))
    trainer = with_copied_reference(policy, tmp_path)

    loss = trainer._compute_loss(trainer.model, with_bos(trainer), False)

    assert loss.item() == pytest.approx(0.693147, abs=1e-6)


@every_loss
def test_the_loss_of_fixed_log_probabilities_equals_trl(
    loss: str, smoothing: float, norm: str, theirs: str, tmp_path: Path
) -> None:
    policy = trained(CASE, backbone("llama"))
    trainer = trl_trainer(policy, tmp_path)
    trainer.loss_types, trainer.loss_weights, trainer.label_smoothing = [theirs], [1.0], smoothing
    inputs = with_bos(trainer)
    mask = inputs["completion_mask"][:, 1:]
    generator = torch.Generator().manual_seed(0)
    value = -torch.rand(mask.shape, generator=generator) * mask
    reference = -torch.rand(mask.shape, generator=generator) * mask
    zeros = torch.zeros(mask.shape)

    def fixed(log_probs: Tensor) -> SimpleNamespace:
        return SimpleNamespace(log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())

    trainer.precompute_ref_logps = True
    chosen, rejected = reference.sum(1).chunk(2)
    inputs |= {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    expected = trainer._compute_loss(lambda **_: fixed(value), inputs, False)

    fake = SimpleNamespace(logprobs=lambda _: _scores(value, mask))
    pairs = SimpleNamespace(step_groups=len(PAIRS), reference_GM=_scores(reference, mask).total_GM)
    ours = PreferenceLoss(loss, BETA, smoothing, norm, "base", 0.0)(fake, pairs).value  # type: ignore[arg-type]

    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=1e-6)


def _scores(value: Tensor, mask: Tensor) -> Any:
    from alignlab.models.policy import Logprobs

    halves = value.sum(1).chunk(2)
    return Logprobs(torch.stack(halves, dim=1), torch.stack(mask.sum(1).float().chunk(2), dim=1))


def test_lora_through_our_tuner_equals_plain_peft() -> None:

    ours = attach(CASE, backbone("llama"), seed=3)
    torch.manual_seed(3)
    plain = peft.get_peft_model(
        backbone("llama").model,
        peft.LoraConfig(task_type="CAUSAL_LM", r=4, lora_alpha=8.0, target_modules="all-linear"),
    )
    ids = torch.arange(3, 19).reshape(2, 8)

    for model in (ours.tuner.module, plain):  # type: ignore[attr-defined]
        optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
        for _ in range(3):
            optimiser.zero_grad()
            model(ids, labels=ids).loss.backward()
            optimiser.step()

    assert torch.equal(logits(ours), plain(ids).logits)


@pytest.mark.parametrize(("margin", "centring"), [(0.0, 0.0), (0.4, 0.0), (0.4, 0.02)])
def test_the_loss_of_a_reward_model_equals_trl(margin: float, centring: float) -> None:
    from trl import RewardTrainer

    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForSequenceClassification(LlamaConfig(vocab_size=64, pad_token_id=0, num_labels=1, **size)).eval()
    ids_GMT = torch.randint(1, 64, (3, 2, 9), generator=torch.Generator().manual_seed(0))
    ids_GMT[1, 0, 5:] = 0
    theirs_RT = ids_GMT.transpose(0, 1).flatten(0, 1)  # all chosen, then all rejected
    trainer: Any = SimpleNamespace(
        model=model,
        args=SimpleNamespace(center_rewards_coefficient=centring or None),
        accelerator=SimpleNamespace(gather=lambda tensor: tensor, gather_for_metrics=lambda tensor: tensor),
        _metrics={"eval": defaultdict(list)},
        _total_train_tokens=0,
    )
    inputs = {"input_ids": theirs_RT, "attention_mask": (theirs_RT != 0).long(), "margin": torch.full((3,), margin)}
    policy: Any = SimpleNamespace(class_scores=lambda batch: model(batch.ids_GMT.flatten(0, 1)).logits.unflatten(0, (3, 2)))
    lengths_GM = (ids_GMT != 0).sum(-1)

    with torch.no_grad():
        expected = RewardTrainer.compute_loss(trainer, model, inputs)
        ours = RewardLoss(margin, centring)(
            policy, Batch(ids_GMT, lengths_GM, lengths_GM, lengths_GM[:, 0], ("a", "b", "c"), 3, 0)
        )

    assert ours.value.item() == pytest.approx(expected.item(), abs=1e-6)
    assert ours.metrics["reward_margin"].item() == pytest.approx(trainer._metrics["eval"]["margin"][0], abs=1e-6)
