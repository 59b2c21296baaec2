"""One card, measured in one go: preference steps with LoRA and RED, packed and padded, beside TRL, and two-stream decoding.

    python benchmarks/gpu.py [--to FILE.md] [--steps 8] [--minutes 7.5] [--pairs 8]
    python benchmarks/gpu.py --rows "DPO, lora, packed" --cudnn
    python benchmarks/gpu.py --tiny --steps 2      # anywhere, to see that it runs

A random Llama of the shape of Llama-3.2-1B in bfloat16; pairs of random ids that share a prompt, with lengths as drawn from
the seed. Every training row is DPO with the base as reference, asked anew in each step, on the same pairs; AdamW; no
activation checkpointing. `TRL` is its DPOTrainer with the same LoRA, left out by name where it is not installed. Tokens are
those of both members of a pair, each with its prompt, whatever a layout computes of them. The share is that of all matrix
products of one step, counted by torch, in what a large product reached on the card just before. Attention is what ran, by
torch's own names. Without a card all is measured on the CPU, in float32, at the tiny size. TRL needs datasets.
"""

from __future__ import annotations

import argparse
import gc
import os
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the alignlab that this file belongs to, installed or not

BETA, RATE, RANK, ALPHA, EOS, PAD = 0.1, 1e-5, 16, 16.0, 1, 0
COLUMNS = ("what", "tokens/s", "ms", "share of matmul", "peak GiB", "attention")


@dataclass(frozen=True)
class Size:
    """Of the model, its texts and the measurement. `prompt`, `response`: shortest and longest, in tokens."""

    width: int
    inner: int
    blocks: int
    heads: int
    keys: int
    vocabulary: int
    pairs: int
    prompt: tuple[int, int]
    response: tuple[int, int]
    texts: int
    read: int
    new: int
    square: int


LARGE = Size(2048, 8192, 16, 32, 8, 128_256, 8, (64, 384), (32, 256), 32, 128, 128, 8192)
TINY = Size(32, 64, 2, 4, 2, 64, 2, (3, 8), (2, 6), 2, 4, 3, 64)


class NoText:
    """In place of a codec: ids are drawn."""

    template_hash = ""


@dataclass(frozen=True)
class Here:
    """Where it runs, how large, and until when."""

    device: str
    dtype: Any
    size: Size
    steps: int
    until: float
    rate: float


def main(words: Sequence[str] | None = None) -> None:
    """Measures, prints each row when it is there, and writes the table."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--to", type=Path, help="file of the table; default: gpu-NAME.md here")
    parser.add_argument("--steps", type=int, default=8, help="timed, behind two that are not")
    parser.add_argument("--minutes", type=float, default=7.5, help="rows that would begin later are left out by name")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--pairs", type=int, help="in a step; default: 8, tiny: 2")
    parser.add_argument("--rows", nargs="*", help="names of the rows to measure; default: all")
    parser.add_argument("--cudnn", action="store_true", help="let torch take cuDNN's attention, which plans each shape anew")
    given = parser.parse_args(words)
    begun = time.monotonic()
    on_card = torch.cuda.is_available()
    size = LARGE if on_card and not given.tiny else TINY
    size = replace(size, pairs=given.pairs or size.pairs)
    device, dtype = ("cuda", torch.bfloat16) if on_card else ("cpu", torch.float32)
    card = torch.cuda.get_device_name() if on_card else f"CPU, {torch.get_num_threads()} threads"
    torch.backends.cuda.enable_cudnn_sdp(given.cudnn)
    rate = matmul_rate(device, dtype, size.square)
    here = Here(device, dtype, size, given.steps, begun + 60 * given.minutes, rate)
    lines = [f"# {card}", "", about(here), "", row(COLUMNS), row(["---"] * len(COLUMNS))]
    print("\n".join(lines), flush=True)
    for name, measure in {name: row for name, row in rows().items() if not given.rows or name in given.rows}.items():
        lines.append(row([name, *_measured(measure, here)]))
        print(lines[-1], flush=True)
    target = given.to or Path(f"gpu-{card.replace(' ', '-').replace(',', '')}.md")
    target.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{time.monotonic() - begun:.0f} s; table: {target}")


def rows() -> dict[str, Callable[[Here], list[str]]]:
    """What is measured, in this order."""
    trained = {
        f"DPO, {tuner}, {layout}": _with(train, tuner, shared)
        for tuner in ("lora", "red")
        for layout, shared in (("packed", True), ("padded", False))
    }
    decoded: dict[str, Callable[[Here], list[str]]] = {
        "decoding, transformers": _with(decode, None),
        "decoding, one stream": _with(decode, 1.0),
        "decoding, two streams": _with(decode, 0.5),
    }
    return {**trained, "DPO, lora, TRL": train_by_trl, **decoded}


def about(here: Here) -> str:
    """What a reader has to know of the numbers."""
    import torch
    import transformers

    size = here.size
    return (
        f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()};"
        f" {str(here.dtype).removeprefix('torch.')}; a product of {size.square} x {size.square} matrices reaches"
        f" {here.rate / 1e12:.3g} TFLOP/s. A random Llama: width {size.width}, {size.blocks} blocks, vocabulary"
        f" {size.vocabulary:,}. DPO: {size.pairs} pairs a step, prompts of {size.prompt[0]} to {size.prompt[1]} tokens,"
        f" responses of {size.response[0]} to {size.response[1]}; medians of {here.steps} steps. Decoding: {size.texts} prompts"
        f" of {size.read} tokens, {size.new} new ones each."
    )


def matmul_rate(device: str, dtype: Any, square: int) -> float:
    """The best of ten large products, FLOP/s."""
    import torch

    a, b = (torch.randn(square, square, device=device, dtype=dtype) for _ in range(2))
    seconds = []
    for _ in range(12):
        with timed(device, seconds):
            a @ b
    return 2 * square**3 / min(seconds[2:])


def train(here: Here, tuner: str, shared: bool) -> list[str]:
    """DPO through the frame's policy and objective."""
    import torch

    from alignlab.data.batching import whole
    from alignlab.models.policy import Policy
    from alignlab.training.objectives import PreferenceLoss

    tuner, backbone = tuned(here, tuner)
    policy = Policy(backbone, tuner, packing="pairs" if shared else "off")
    objective = PreferenceLoss(loss="sigmoid", beta=BETA, smoothing=0.0, length_norm="sum", reference="base", likelihood=0.0)
    optimiser = torch.optim.AdamW(tuner.parameters(), RATE)
    batches = [whole(groups(here, step), PAD).to(here.device) for step in range(here.steps + 2)]

    def step(number: int) -> None:
        objective(policy, batches[number]).value.backward()
        optimiser.step()
        optimiser.zero_grad()

    return of_steps(here, step)


def train_by_trl(here: Here) -> list[str]:
    """TRL's trainer, a step at a time, on the same pairs."""
    if find_spec("trl") is None or find_spec("datasets") is None:
        return ["left out: trl or datasets is not installed", *[""] * 4]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TRL and transformers warn of each other's names
        return _by_trl(here)


def _by_trl(here: Here) -> list[str]:
    import peft
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar
    from trl import DPOConfig, DPOTrainer

    disable_progress_bar()
    texts = [row for step in range(here.steps + 2) for row in as_texts(here, step)]
    adapter = peft.LoraConfig(task_type="CAUSAL_LM", r=RANK, lora_alpha=ALPHA, target_modules="all-linear")
    config = DPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=here.size.pairs,
        max_steps=here.steps + 2,
        learning_rate=RATE,
        beta=BETA,
        max_length=None,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=here.device == "cpu",
        bf16=False,
        gradient_checkpointing=False,
        train_sampling_strategy="sequential",
    )
    made = DPOTrainer(
        model=random_llama(here),
        args=config,
        train_dataset=Dataset.from_list(texts),
        processing_class=numbers(here.size.vocabulary),
        peft_config=adapter,
    )
    made.create_optimizer()
    made.current_gradient_accumulation_steps = 1  # which its own loop would set
    batches = list(made.get_train_dataloader())

    def step(number: int) -> None:
        made.training_step(made.model, batches[number])
        made.optimizer.step()
        made.optimizer.zero_grad()

    return of_steps(here, step)


def decode(here: Here, strength: float | None) -> list[str]:
    """New tokens, greedily: by transformers alone (None), or through the dial of a CLM block."""
    import torch

    from alignlab.tuners.at_strength import at_strength

    size = here.size
    drawn = torch.Generator().manual_seed(0)
    ids = torch.randint(2, size.vocabulary, (size.texts, size.read), generator=drawn).to(here.device)
    given: dict[str, Any] = {"max_new_tokens": size.new, "min_new_tokens": size.new, "do_sample": False, "pad_token_id": PAD}
    if strength is None:
        model = random_llama(here)
    else:
        tuner, backbone = tuned(here, "clm")
        model = backbone.model
        given["custom_generate"] = at_strength(tuner.module, strength)

    def step(_number: int) -> None:
        with torch.inference_mode():
            made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **given)
        assert made.shape[1] == size.read + size.new

    return of_steps(here, step, most=3, tokens=size.texts * size.new)


def of_steps(here: Here, step: Callable[[int], None], *, most: int | None = None, tokens: int | None = None) -> list[str]:
    """Runs two steps (the second counted and looked at), then the timed ones; the cells of a row behind its name."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    count = min(most or here.steps, here.steps)
    if here.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    step(0)
    ran: list[str] = []
    with attention(ran), FlopCounterMode(display=False, custom_mapping=products_of_attention()) as counter:
        step(1)
    products = counter.get_total_flops()
    seconds: list[float] = []
    for number in range(2, 2 + count):
        with timed(here.device, seconds):
            step(number)
    done = [tokens or _tokens(here, number) for number in range(2, 2 + count)]
    speed = statistics.median(number / second for number, second in zip(done, seconds, strict=True))
    second = statistics.median(seconds)
    # Steps differ in their tokens, so the counted one's products go with its own tokens.
    share = products / (tokens or _tokens(here, 1)) * speed / here.rate
    peak = f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if here.device == "cuda" else "not measured"
    return [f"{speed:,.0f}", f"{1000 * second:.1f}", f"{100 * share:.0f} %", peak, ", ".join(ran) or "plain products"]


def products_of_attention() -> dict[Any, Callable[..., int]]:
    """FLOP of what torch's own count refuses: fused attentions where the queries' heads share fewer heads of keys (forward: two
    products of each query with each key; backward: five), and sums with a product whose type is given.
    """
    import torch

    def products(count: int, query_BHQD: Sequence[int], key_BhKD: Sequence[int], value_BhKD: Sequence[int]) -> int:
        rows, heads, asks, width = query_BHQD
        return count * rows * heads * asks * key_BhKD[2] * (width + value_BhKD[3])

    def forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return products(2, query, key, value)

    def backward(_gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return products(5, query, key, value)

    def addmm(_bias: Any, a_MK: Sequence[int], b_KN: Sequence[int], *_: Any, **__: Any) -> int:
        return 2 * a_MK[0] * a_MK[1] * b_KN[1]

    names = ("flash", "efficient", "cudnn")
    fused = [f"_scaled_dot_product_{name}_attention" for name in names]
    counts = {
        getattr(torch.ops.aten, name + end): count for name in fused for end, count in (("", forward), ("_backward", backward))
    }
    return {**counts, torch.ops.aten.addmm: addmm}


@contextmanager
def timed(device: str, seconds: list[float]) -> Iterator[None]:
    """Appends the seconds that what is inside has taken, the card's queue included."""
    import torch

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    begun = time.perf_counter()
    yield
    wait()
    seconds.append(time.perf_counter() - begun)


@contextmanager
def attention(ran: list[str]) -> Iterator[None]:
    """Appends torch's names of the attentions that ran inside."""
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = func.overloadpacket.__name__.removeprefix("_scaled_dot_product_")
            if "attention" in name and "backward" not in name and name not in ran:
                ran.append(name)
            return func(*args, **(kwargs or {}))

    with torch.autograd.set_detect_anomaly(False), Seen():
        yield


def tuned(here: Here, tuner: str) -> tuple[Any, Any]:
    """A tuner as its config has it, and the backbone that it sits in."""
    import torch

    from alignlab.models.backbone import Backbone
    from alignlab.models.kinds import KINDS
    from alignlab.tuners import TUNERS

    settings: dict[str, dict[str, Any]] = {
        "lora": {"rank": RANK, "alpha": ALPHA, "dropout": 0.0, "targets": []},
        "red": {"edit": "both", "place": "ffn", "targets": None},
        "clm": {"blocks": 1, "start": "identity", "merge": "logits", "targets": None, "writes": None},
    }
    backbone = Backbone("random", random_llama(here), NoText(), "random", KINDS["causal"].implementation())  # type: ignore[arg-type]  # no text here
    torch.manual_seed(0)
    config = TUNERS[tuner].config(name=tuner, likelihood_rate=RATE, preference_rate=RATE, **settings[tuner])
    tuner = TUNERS[tuner].build(config, backbone.model)
    backbone.model.requires_grad_(False)
    for parameter in tuner.parameters():
        parameter.requires_grad_(True)
    return tuner, backbone


def random_llama(here: Here) -> Any:
    """The backbone, the same numbers each time."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    size = here.size
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=size.width,
        intermediate_size=size.inner,
        num_hidden_layers=size.blocks,
        num_attention_heads=size.heads,
        num_key_value_heads=size.keys,
        vocab_size=size.vocabulary,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
        attn_implementation="sdpa",
        dtype=here.dtype,
    )
    with torch.device(here.device):
        return LlamaForCausalLM(config).to(here.dtype).eval().requires_grad_(False)


def pairs(here: Here, step: int) -> list[tuple[list[int], list[int], list[int]]]:
    """Prompt, chosen and rejected of each pair of a step, both ending in EOS."""
    import torch

    drawn = torch.Generator().manual_seed(step)

    def some(between: tuple[int, int]) -> list[int]:
        length = int(torch.randint(between[0], between[1] + 1, (), generator=drawn))
        ids: list[int] = torch.randint(2, here.size.vocabulary, (length,), generator=drawn).tolist()
        return ids

    size = here.size
    return [(some(size.prompt), [*some(size.response), EOS], [*some(size.response), EOS]) for _ in range(size.pairs)]


def groups(here: Here, step: int) -> list[Any]:
    """The pairs of a step as the frame takes them."""
    from alignlab.records import Encoded, EncodedGroup

    return [
        EncodedGroup(str(number), tuple(Encoded((*prompt, *answer), len(prompt)) for answer in answers))
        for number, (prompt, *answers) in enumerate(pairs(here, step))
    ]


def as_texts(here: Here, step: int) -> list[dict[str, str]]:
    """The same pairs as texts for `numbers`."""
    names = ("prompt", "chosen", "rejected")
    return [{name: f" {' '.join(map(str, ids))}" for name, ids in zip(names, pair, strict=True)} for pair in pairs(here, step)]


def numbers(vocabulary: int) -> Any:
    """A tokenizer whose words are the ids themselves."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({str(number): number for number in range(vocabulary)}, unk_token=str(PAD)))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=str(EOS), pad_token=str(PAD), unk_token=str(PAD))


def row(cells: Sequence[str]) -> str:
    """A row of a markdown table."""
    return f"| {' | '.join(cells)} |"


def _tokens(here: Here, step: int) -> int:
    return sum(2 * len(prompt) + len(chosen) + len(rejected) for prompt, chosen, rejected in pairs(here, step))


def _with(function: Callable[..., list[str]], *more: Any) -> Callable[[Here], list[str]]:
    return lambda here: function(here, *more)


def _measured(measure: Callable[[Here], list[str]], here: Here) -> list[str]:
    """The cells of a row; what does not fit the card or the time says so in its row."""
    import torch

    if time.monotonic() > here.until:
        return ["left out: no time left", *[""] * 4]
    try:
        return measure(here)
    except torch.OutOfMemoryError:
        return ["out of memory", *[""] * 4]
    finally:
        gc.collect()
        if here.device == "cuda":
            torch.cuda.empty_cache()


if __name__ == "__main__":
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    main()
