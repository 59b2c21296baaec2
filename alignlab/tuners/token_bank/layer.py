"""The bank and the task prompt of one adapter, how vectors are chosen from the bank, and the layer that puts them into a text.

Source: TPT (2023.findings-emnlp.584), its abstract and released code; where the code does not run, the definition is ours.
Shapes: R rows of a pass, T time, D width, N vectors of the bank, K of them that are chosen, M of the task prompt, C prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import cast

import torch
from peft import PeftConfig
from torch import Tensor, nn

from alignlab.errors import ConfigError
from alignlab.registry import unknown
from alignlab.tuners.config import RETRIEVALS, check_bank
from alignlab.tuners.peft_tuner import peft_type
from alignlab.tuners.placeholders import PlaceholderEmbedding, VectorTable, slots

TASK = "task"
"""The part that is the task prompt."""
SHARPNESS = 1 / 3
"""Power of the weights of retrieval `sampled`."""


@dataclass
class TokenBankConfig(PeftConfig):
    """The configuration of a token bank.

    Raises:
        ConfigError: a retrieval that does not exist, more vectors chosen than there are, prompts that do not fill the bank.
    """

    tokens: int = field(default=600, metadata={"help": "Vectors of the bank."})
    retrieved: int = field(default=100, metadata={"help": "Vectors that are chosen for a text."})
    length: int = field(default=100, metadata={"help": "Vectors of the task prompt."})
    retrieval: str = field(default="max", metadata={"help": f"How they are chosen: {', '.join(RETRIEVALS)}."})
    masked: bool = field(default=True, metadata={"help": "Whether padding is hidden from attention and pooling."})
    padded_to: int | None = field(default=None, metadata={"help": "Tokens that a text is padded to, where it is not masked."})
    draw_seed: int = field(default=0, metadata={"help": "Of random and sampled, with the ids of the text."})
    bank_ids: list[int] = field(
        default_factory=list, metadata={"help": "[first, behind] of the ids whose embeddings it starts as."}
    )
    prompt_ids: list[int] = field(default_factory=list, metadata={"help": "Likewise of the task prompt."})
    placeholders: list[int] = field(
        default_factory=list, metadata={"help": "Two ids that no text holds; none: the last of the vocabulary."}
    )
    parts: list[str] = field(default_factory=list, metadata={"help": "Those that are there; none: all."})
    pad: int = field(default=0, metadata={"help": "The id of padding."})
    target_modules: list[str] | str | None = field(default=None, metadata={"help": "The encoder's embedding; it is found."})
    modules_to_save: list[str] | None = field(default=None, metadata={"help": "Modules that are trained and saved beside it."})
    base_hash: str | None = field(default=None, metadata={"help": "Hash of the weights that it was trained on."})

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = peft_type("TPT")
        if self.retrieval not in RETRIEVALS:
            raise ConfigError(unknown("retrieval of a token bank", self.retrieval, RETRIEVALS))
        check_bank("", self.retrieval, self.tokens, self.retrieved)
        self.parts = self.parts or self.all_parts

    @property
    def bank_parts(self) -> list[str]:
        """What the bank consists of: one tensor, or one for each whole prompt."""
        if self.retrieval == "none":
            return []
        return [f"prompt{number}" for number in range(self.tokens // self.retrieved)] if self.retrieval == "whole" else ["bank"]

    @property
    def all_parts(self) -> list[str]:
        """The bank's and the task prompt."""
        return [*self.bank_parts, TASK]


class TokenBank(VectorTable):
    """One adapter's vectors. `present`: the parts that take part; a vector of the bank is chosen among the present ones."""

    ids_P: Tensor
    task: nn.Parameter
    router_weight: nn.Parameter
    router_bias: nn.Parameter

    def __init__(self, base: nn.Embedding, config: TokenBankConfig) -> None:
        super().__init__()
        self.config, self.pad = config, config.pad
        device = base.weight.device
        bank_ND = start(base, config.bank_ids, config.tokens) if config.bank_parts else None
        for number, name in enumerate(config.bank_parts):
            own = config.tokens // len(config.bank_parts)
            self._learn(name, cast("Tensor", bank_ND)[number * own : (number + 1) * own], config)
        if config.retrieval == "router":
            router = nn.Linear(base.embedding_dim, config.tokens, device=device, dtype=torch.float32)
            self._learn("router_weight", router.weight, config, of="bank")
            self._learn("router_bias", router.bias, config, of="bank")
        self._learn(TASK, start(base, config.prompt_ids, config.length), config)
        self.register_buffer("ids_P", torch.tensor(config.placeholders, device=device), persistent=False)
        self.present = tuple(config.parts)

    def _learn(self, name: str, values: Tensor, config: TokenBankConfig, of: str | None = None) -> None:
        if (of or name) in config.parts:
            self.register_parameter(name, nn.Parameter(values.detach().float().clone()))

    def parts(self) -> Mapping[str, list[nn.Parameter]]:
        """The parameters of each part."""
        return {part: [self.get_parameter(name) for name in self.names(part)] for part in self.config.parts}

    def names(self, part: str) -> list[str]:
        """Those of a part's parameters, in the same order; a router belongs to the bank."""
        routed = part == "bank" and self.config.retrieval == "router"
        return [part, "router_weight", "router_bias"] if routed else [part]

    @property
    def retrieved(self) -> int:
        """Vectors of the bank in a text."""
        return self.config.retrieved if any(part in self.present for part in self.config.bank_parts) else 0

    @property
    def length(self) -> int:
        """Vectors of the task prompt in a text."""
        return self.config.length if TASK in self.present else 0

    @property
    def bank_ND(self) -> Tensor:
        """The vectors that are chosen from."""
        return torch.cat([self.get_parameter(part) for part in self.config.bank_parts if part in self.present])

    @contextmanager
    def only_present(self) -> Iterator[None]:
        """Inside, the parameters of parts that take no part are not there, to be neither written nor read."""
        absent = [name for part in self.config.parts if part not in self.present for name in self.names(part)]
        held = {name: self._parameters.pop(name) for name in absent}
        try:
            yield
        finally:
            self._parameters.update(held)

    def forward(self, ids_RT: Tensor, embedded_RTD: Tensor) -> Tensor:
        """[P; S; X] where placeholders stand in front of X: P = B[I] the chosen vectors, S the task prompt. Raises ControlError
        as `slots` does."""
        found = slots(ids_RT, self.ids_P, (self.retrieved, self.length))
        if found is None:
            return embedded_RTD
        hit_RTP, slot_RT = found
        vectors = [self.task.expand(len(ids_RT), -1, -1)] if self.length else []
        if self.retrieved:
            vectors.insert(0, self.chosen(ids_RT, embedded_RTD, ~hit_RTP.any(-1))[1])
        place_RT = slot_RT + hit_RTP[..., 1] * self.retrieved
        put_RTD = torch.cat(vectors, 1).gather(1, place_RT[..., None].expand(-1, -1, embedded_RTD.shape[-1]))
        return torch.where(hit_RTP.any(-1, keepdim=True), put_RTD.to(embedded_RTD.dtype), embedded_RTD)

    def chosen(self, ids_RT: Tensor, embedded_RTD: Tensor, text_RT: Tensor) -> tuple[Tensor, Tensor]:
        """The numbers of the chosen vectors in rising order, R,K, and the vectors, R,K,D. `text_RT`: where no placeholder
        stands; padding counts as text where it is not masked."""
        inside_RT = text_RT & (ids_RT != self.pad) if self.config.masked else text_RT
        return RETRIEVED_BY[self.config.retrieval](self, Seen(ids_RT, embedded_RTD.float(), inside_RT))


@dataclass(frozen=True)
class Seen:
    """The texts that vectors are chosen for: ids, embeddings in float32, and which positions count."""

    ids_RT: Tensor
    embedded_RTD: Tensor
    inside_RT: Tensor

    @property
    def most_RD(self) -> Tensor:
        """The query q: each dimension's maximum over the positions."""
        return self.embedded_RTD.masked_fill(~self.inside_RT[..., None], -torch.inf).amax(1)

    @property
    def mean_RD(self) -> Tensor:
        """The mean over the positions."""
        inside_RT1 = self.inside_RT[..., None]
        return (self.embedded_RTD * inside_RT1).sum(1) / inside_RT1.sum(1)

    def uniform_RN(self, seed: int, count: int) -> Tensor:
        """`count` numbers in (0, 1) per row, which depend on the seed and on the ids of the text alone."""
        place_RT = self.inside_RT.cumsum(1)
        each_RT = _scrambled(_scrambled(self.ids_RT + 1) + place_RT) * self.inside_RT
        row_R1 = _scrambled(each_RT.sum(1, keepdim=True) + _scrambled(torch.tensor(seed, device=self.ids_RT.device)))
        bits_RN = _scrambled(row_R1 + torch.arange(1, count + 1, device=self.ids_RT.device))
        return (((bits_RN >> 11) & (2**53 - 1)).double() + 0.5) / 2**53


def _scrambled(bits: Tensor) -> Tensor:
    """Bits that look random (splitmix64); int64 wraps round."""
    for shift, factor in ((30, -4658895280553007687), (27, -7723592293110705685)):
        bits = (bits ^ ((bits >> shift) & (2 ** (64 - shift) - 1))) * factor
    return bits ^ ((bits >> 31) & (2**33 - 1))


def best(scores_RN: Tensor, count: int) -> Tensor:
    """The numbers of the highest scores in rising order, R,K; of equal ones the lower numbers."""
    return scores_RN.argsort(dim=-1, descending=True, stable=True)[:, :count].sort(-1).values


@torch.no_grad()
def _hard(bank: TokenBank, query_RD: Tensor) -> Tensor:
    return best(query_RD @ bank.bank_ND.T, bank.retrieved)


def by_maximum(bank: TokenBank, seen: Seen) -> tuple[Tensor, Tensor]:
    """I = the k largest of a = B q, for q the maximum over positions (released default). No gradient goes to the scores."""
    index_RK = _hard(bank, seen.most_RD)
    return index_RK, bank.bank_ND[index_RK]


def by_average(bank: TokenBank, seen: Seen) -> tuple[Tensor, Tensor]:
    """The same for q the mean over positions."""
    index_RK = _hard(bank, seen.mean_RD)
    return index_RK, bank.bank_ND[index_RK]


def at_random(bank: TokenBank, seen: Seen) -> tuple[Tensor, Tensor]:
    """k vectors, any as likely as another; a text has the same in every batch."""
    index_RK = best(seen.uniform_RN(bank.config.draw_seed, len(bank.bank_ND)), bank.retrieved)
    return index_RK, bank.bank_ND[index_RK]


def sampled(bank: TokenBank, seen: Seen) -> tuple[Tensor, Tensor]:
    """k vectors drawn without replacement, weights = scores above the lowest one, to the power of 1/3."""
    with torch.no_grad():
        score_RN = (seen.most_RD @ bank.bank_ND.T).double()
        weight_RN = (score_RN - score_RN.amin(-1, keepdim=True)).clamp(min=1e-9) ** SHARPNESS
        # The k largest of log w + Gumbel noise are a draw without replacement (Vieira 2014).
        noise_RN = -(-seen.uniform_RN(bank.config.draw_seed, score_RN.shape[1]).log()).log()
        index_RK = best(weight_RN.log() + noise_RN, bank.retrieved)
    return index_RK, bank.bank_ND[index_RK]


def softly(bank: TokenBank, seen: Seen) -> tuple[Tensor, Tensor]:
    """For each of k positions softmax(B x) mixes all vectors; positions: those with the highest best score, in rising order, a
    short text's again and again. The numbers: the likeliest vector of each."""
    bank_ND = bank.bank_ND
    score_RTN = seen.embedded_RTD @ bank_ND.T
    best_RT = score_RTN.detach().amax(-1).masked_fill(~seen.inside_RT, -torch.inf)
    order_RT = best_RT.argsort(dim=-1, descending=True, stable=True)
    of_row_R1 = seen.inside_RT.sum(1, keepdim=True).clamp(max=bank.retrieved)
    turn_RK = torch.arange(bank.retrieved, device=order_RT.device) % of_row_R1
    place_RK = order_RT.gather(1, turn_RK).sort(-1).values
    chosen_RKN = score_RTN.gather(1, place_RK[..., None].expand(-1, -1, len(bank_ND)))
    return chosen_RKN.argmax(-1), chosen_RKN.softmax(-1) @ bank_ND


def by_router(bank: TokenBank, seen: Seen) -> tuple[Tensor, Tensor]:
    """softmax(W q + b) as weights, the k largest kept; gradient goes through the weights to W and b."""
    weight_RN = torch.nn.functional.linear(seen.most_RD, bank.router_weight, bank.router_bias).softmax(-1)
    index_RK = best(weight_RN.detach(), bank.retrieved)
    return index_RK, weight_RN.gather(1, index_RK)[..., None] * bank.bank_ND[index_RK]


def whole(bank: TokenBank, seen: Seen) -> tuple[Tensor, Tensor]:
    """One of several stored prompts, taken whole: that with the highest (maximum over its vectors) . q."""
    bank_ND = bank.bank_ND
    with torch.no_grad():
        most_CD = bank_ND.unflatten(0, (-1, bank.retrieved)).amax(1)
        prompt_R1 = best(seen.most_RD @ most_CD.T, 1)
    index_RK = prompt_R1 * bank.retrieved + torch.arange(bank.retrieved, device=prompt_R1.device)
    return index_RK, bank_ND[index_RK]


RETRIEVED_BY: Mapping[str, Callable[[TokenBank, Seen], tuple[Tensor, Tensor]]] = {
    "max": by_maximum,
    "average": by_average,
    "random": at_random,
    "soft": softly,
    "router": by_router,
    "sampled": sampled,
    "whole": whole,
}


def start(base: nn.Embedding, ids: Sequence[int], count: int) -> Tensor:
    """Embeddings of `count` ids of [first, behind), drawn without replacement as far as they go; those of frequent pieces in
    the released code. `ids` empty: of the whole vocabulary. Raises ConfigError where the range is not in the vocabulary."""
    first, behind = ids or (0, base.num_embeddings)
    if not 0 <= first < behind <= base.num_embeddings:
        raise ConfigError(f"ids {first} to {behind} to start as are not in a vocabulary of {base.num_embeddings}; set others.")
    rounds = -(-count // (behind - first))
    drawn_N = torch.cat([torch.randperm(behind - first, device="cpu") for _ in range(rounds)])[:count] + first
    # Through the module, since some models scale what they look up.
    return cast("Tensor", base(drawn_N.to(base.weight.device)))


class TokenBankEmbedding(PlaceholderEmbedding):
    """The encoder's embedding; placeholders come out as vectors of the bank, chosen by the text, and as the task prompt."""

    adapter_layer_names = ("tpt_vectors",)
    no_merge = (
        "a token bank chooses by the text, so it cannot be folded into weights; load the adapter with PEFT, or the run with"
        " alignlab.load."
    )

    def table(self, config: PeftConfig) -> TokenBank:
        """The vectors of a new adapter."""
        assert isinstance(config, TokenBankConfig)
        return TokenBank(self.base_layer, config)
