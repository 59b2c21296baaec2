"""A backbone with a tuner: the methods that objectives, suites and users call, and the contexts that set strength and class.

Log-probabilities are computed here and nowhere else; the head runs on response positions only. Shapes: G groups, M members,
R rows, K tokens that are scored, D width, V vocabulary, C classes.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.generation.streamers import BaseStreamer

from alignlab.errors import ControlError
from alignlab.models.anatomy import Footprint, attention_in, attention_of, check_answer, mixed
from alignlab.models.backbone import Backbone
from alignlab.models.packing import Layout, described
from alignlab.models.sampling import Sampling
from alignlab.models.strength import (
    ONE_PASS,
    AskedStrengths,
    ClassMixture,
    Controls,
    HasStrength,
    Strength,
    WeightedPass,
    as_strength,
    insert_prefixes,
    strengths_of,
)
from alignlab.records import Batch, Loss

if TYPE_CHECKING:
    from alignlab.models.answers import Budget
    from alignlab.models.text import Text

CHUNK_TOKENS = 2048
"""Response tokens whose logits exist at the same time; at 128k vocabulary and fp32 about 1 GB."""


@dataclass(frozen=True)
class Logprobs:
    """Log-probability (nats) of each response, summed over its tokens, and how many tokens it has, EOS included."""

    total_GM: Tensor
    tokens_GM: Tensor

    @property
    def mean_GM(self) -> Tensor:
        """Nats per response token."""
        return self.total_GM / self.tokens_GM.clamp(min=1)


@dataclass(frozen=True)
class Pass:
    """A weighted pass up to its hidden states. `head` makes logits of them, `inside`, with the tuner set as in the pass."""

    weight: float | Tensor
    head: Callable[[Tensor], Tensor]
    hidden_KD: Tensor
    inside: Callable[[], AbstractContextManager[None]] = nullcontext

    def piece(self, tokens: slice) -> Pass:
        """The same for some of the tokens; a weight per token is cut likewise."""
        weight = self.weight[tokens] if isinstance(self.weight, Tensor) else self.weight
        return replace(self, weight=weight, hidden_KD=self.hidden_KD[tokens])

    def logits(self) -> Tensor:
        """K,V, fp32."""
        with self.inside():
            return self.head(self.hidden_KD).float()


class Policy:
    """What is trained, evaluated and used. The tuner sits inside `backbone.model`; `tuner` sets it. A policy is in evaluation
    mode however its weights arrive, and a stage that trains puts it back into it. `packing`: which batches
    are computed without padding, all in one row, where the backbone can: pairs (those whose members share a prefix), all or
    off. `pass_gib`: GiB that a pass without gradients may take beside the weights, None = no limit. `mixed`: why rows of one
    pass cannot differ in their setting, though the tuner has it so; empty where they can."""

    def __init__(
        self, backbone: Backbone, tuner: HasStrength, *, packing: str = "pairs", pass_gib: float | None = None
    ) -> None:
        self.backbone = backbone
        self.tuner = tuner
        self.packing = packing
        self.pass_gib = pass_gib
        backbone.model.eval()  # what a tuner has added, its dropout for one, is in training mode until now
        with tuner.off():
            _ = backbone.abilities  # of the backbone alone, where loading has not asked
        self.mixed = mixed(backbone, tuner) if tuner.per_row else str(getattr(tuner, "one_strength", ""))
        if self.mixed:
            tuner.per_row = False
        if tuner.controls is not None:
            tuner.controls.check_template(backbone.codec.template_hash)
        self._passes: tuple[WeightedPass, ...] | None = None
        self._running: tuple[Layout, Strength] | None = None
        self._laid: tuple[weakref.ref[Batch], str, Layout] | None = None

    @property
    def model(self) -> nn.Module:
        """The module that holds every parameter."""
        return self.backbone.model

    @cached_property
    def budget(self) -> Budget:
        """How many texts fit a pass without gradients."""
        from alignlab.models.answers import Budget

        return Budget(Footprint.of(self.backbone.model, self.backbone.model.dtype.itemsize), self.pass_gib)

    @property
    def controls(self) -> Controls:
        """The classes between which the tuner chooses. Raises ControlError where it has none."""
        if self.tuner.controls is None:
            raise ControlError("this tuner has a strength and no classes; give strength= instead of control=.")
        return self.tuner.controls

    @property
    def room(self) -> int:
        """Tokens of prompt and answer together, beside what the tuner puts into a text."""
        return self.backbone.context - self.tuner.inserted.tokens

    def prompt_room(self, new: int) -> int:
        """Tokens that a prompt may have where so many are to follow; of an encoder-decoder model, whose answer is a text of its
        own, all that there is room for. Raises ConfigError where a decoder has no room for so many new ones."""
        if not self.backbone.model.config.is_encoder_decoder:
            return self.room - new
        check_answer(self.backbone.model, new)
        return self.room

    @property
    def layout_reason(self) -> str:
        """How batches are laid into rows, which attention computes them, and why."""
        able = self.backbone.abilities
        said = [described(self.packing, able.packed, attention_in(self.backbone.model))]
        if able.unmasked:
            said.append(f"{'one row per pass' if able.masked else 'padding masked'}, since without that {able.unmasked}")
        if self.mixed:
            said.append(f"one strength per pass, since rows of several: {self.mixed}")
        return "; ".join(said)

    def logprobs(self, batch: Batch) -> Logprobs:
        """Log-probability in nats of each response given its prompt, shape groups x members. Members that have a class are
        asked under it, unless a context says otherwise."""
        placed, (groups, members, _) = self._placed(batch), batch.ids_GMT.shape
        layout, passes = placed[0][0], [self._pass(rows, weighted) for rows, weighted in placed]
        value_K = token_logprobs(passes, layout.target_K)
        return Logprobs(
            total_GM=sum_by_member(value_K, layout.member_K, groups, members),
            tokens_GM=sum_by_member(torch.ones_like(value_K), layout.member_K, groups, members),
        )

    @torch.no_grad()
    def greedy(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The sums of `logprobs`, and whether greedy decoding would write each response: every token of it is the likeliest."""
        placed = self._placed(batch)
        layout, passes = placed[0][0], [self._pass(rows, weighted) for rows, weighted in placed]
        value_K, other_K = token_ranks(passes, layout.target_K)
        total_GM, other_GM = (sum_by_member(each, layout.member_K, *batch.ids_GMT.shape[:2]) for each in (value_K, other_K))
        return total_GM, other_GM == 0

    def nll(self, batch: Batch) -> Loss:
        """The batch's share of the mean negative log-likelihood of what the examples of the step end in: nats per target token,
        or of a classifier nats per example (of a number, its squared error)."""
        if self.backbone.kind.scores_classes:
            return self.backbone.kind.class_loss(self.class_scores(batch).flatten(0, 1), batch)
        return Loss(-self.logprobs(batch).total_GM.sum() / batch.step_tokens, {})

    def label_scores(self, batch: Batch) -> Tensor:
        """A score of each label for each group of the kind's `choices`, G,C: the head's, or the label's log-likelihood in nats,
        summed over its tokens. The highest is the model's answer."""
        return self.class_scores(batch)[:, 0] if self.backbone.kind.scores_classes else self.logprobs(batch).total_GM

    def class_scores(self, batch: Batch) -> Tensor:
        """Scores of the classes of each text before softmax, or one predicted number: groups x members x classes, fp32. Raises
        ModelError where the backbone is no classifier."""
        groups, members, _ = batch.ids_GMT.shape
        total_RC = torch.zeros((), device=batch.ids_GMT.device)
        for layout, weighted in self._placed(batch):
            weight = weighted.weight[:, None] if isinstance(weighted.weight, Tensor) else weighted.weight
            total_RC = total_RC + weight * self._by_pieces(
                layout, weighted, lambda rows: self.backbone.kind.class_scores(self.backbone, rows), dim=0, of_rows=True
            )
        return total_RC.unflatten(0, (groups, members))

    def hidden_states(self, batch: Batch, layers: Sequence[int]) -> Tensor:
        """Outputs of blocks `layers` (1 = the first block) at the response tokens: layers x tokens x width.

        Tokens stand in the order of the batch's members. The pass stops behind the highest layer. Raises ConfigError for a
        layer outside 1..L.
        """
        (layout, weighted), *others = self._placed(batch)
        if others:
            raise ControlError("hidden states of a mixture of passes are not defined; ask at strength 0 or 1.")
        return self._by_pieces(layout, weighted, lambda rows: self.backbone.kind.states(self.backbone, rows, layers), dim=1)

    def read(self, batch: Batch, inside: Callable[[], AbstractContextManager[None]] = nullcontext) -> list[Pass]:
        """The passes over a batch, made `inside`, up to the hidden states that predict response tokens, member by member."""
        with inside():
            return [replace(self._pass(rows, weighted), inside=inside) for rows, weighted in self._placed(batch)]

    def respond(
        self,
        prompts: Sequence[str],
        *,
        strength: AskedStrengths = 1.0,
        control: ClassMixture | Sequence[ClassMixture] | None = None,
        sampling: Sampling,
        seed: int,
        streamer: BaseStreamer | None = None,
        kept: MutableMapping[int, Any] | None = None,
    ) -> list[str]:
        """Answers each prompt at one strength, or at one strength per prompt; or under a class (`control`), likewise.

        Of several adapters, a strength is a number for all or a mapping from the name of each to its own. A class is a name, or
        a mapping from names to weights that add up to 1, which mixes their passes at the logits; "none" is the model without
        any. A row's text depends on its prompt, its strength or class, the seed and its place in `prompts`, not on the batch it
        ran in. `streamer` gets a single prompt's ids, and then each new one. `kept`: the texts of batches that an earlier call
        has answered, by number; others are put there. Raises ControlError for a strength that is not finite, an unknown class,
        a list of the wrong length, beams over a mixture of passes, and a streamer for several prompts or beams; ConfigError
        where the model has no room for a prompt or an answer.
        """
        from alignlab.models.answers import respond

        return respond(self, prompts, strength, control, sampling, seed, streamer, kept)

    def classify(self, texts: Sequence[Text], *, strength: AskedStrengths = 1.0) -> list[dict[str, float]]:
        """The probability of each class for each text, or pair of texts, by name and in the order of the classes; at one
        strength, or at one per text. A text's result does not depend on the others: its neighbours in a pass are masked.

        Raises ModelError where the backbone tells no classes apart, ControlError as `respond` for strengths, DataError for an
        empty text, ConfigError for one that is longer than the model's context.
        """
        from alignlab.models.answers import classify

        return classify(self, texts, strength)

    @contextmanager
    def at(self, strength: Tensor | AskedStrengths) -> Iterator[None]:
        """Every verb inside runs at this strength, as in `respond`: one, or one per group of the batch, also as a tensor.

        Raises ControlError for a strength that is not finite, and in the verbs for a tensor of another length than the batch.
        """
        values = strengths_of(self.tuner, strength.tolist() if isinstance(strength, Tensor) else strength)
        given = strength.new_tensor(values) if isinstance(strength, Tensor) else as_strength(values, self.backbone.device)
        before, self._passes = self._passes, self.tuner.passes(given)
        try:
            yield
        finally:
            self._passes = before

    @contextmanager
    def under(self, control: ClassMixture) -> Iterator[None]:
        """Every verb inside runs under this class, or mixture of classes; "none" is the model without any.

        Raises ControlError for an unknown class, and where the tuner has none.
        """
        before, self._passes = self._passes, self.controls.passes(self.controls.mixtures(control, 1))
        try:
            yield
        finally:
            self._passes = before

    @contextmanager
    def off(self) -> Iterator[None]:
        """Every verb inside is the backbone's without the tuner, bit for bit; as trained, where a stage moved the backbone."""
        before, self._passes = self._passes, ONE_PASS
        try:
            with self.tuner.off():
                yield
        finally:
            self._passes = before

    def without_activations(self, wanted: bool) -> AbstractContextManager[None]:
        """Where `wanted`, blocks keep no activations inside, and a backward pass computes them again, at the pass's setting and
        with its attention."""

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), nullcontext() if self._running is None else self._again(*self._running)

        return self.backbone.without_activations(wanted, contexts)

    @contextmanager
    def only(self, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
        """Inside, exactly these parameters take gradients."""
        chosen = set(parameters)
        before = {parameter: parameter.requires_grad for parameter in self.model.parameters()}
        try:
            for parameter in before:
                parameter.requires_grad_(parameter in chosen)
            yield
        finally:
            for parameter, required in before.items():
                parameter.requires_grad_(required)

    def _placed(self, batch: Batch) -> list[tuple[Layout, WeightedPass]]:
        """For each pass its rows, prefixes included, and the pass with settings and weights per row."""
        if self._passes is None and batch.controls is not None:
            each, setting_R = self.controls.insert_prefixes(batch)
            return [(self._layout(each, "off"), WeightedPass(1.0, setting_R))]
        passes = self._passes or self.tuner.default_passes
        # Settings that differ within a pass need a row for each member.
        differ = any(isinstance(number, Tensor) for weighted in passes for number in (weighted.weight, weighted.setting))
        members, packing = batch.ids_GMT.shape[0] * batch.ids_GMT.shape[1], "off" if differ else self.packing
        placed = []
        for weighted in passes:
            each = insert_prefixes(batch, [weighted.prefix] * members) if weighted.prefix.ids else batch
            layout = self._layout(each, packing)
            if differ:
                weighted = WeightedPass(_by_row(weighted.weight, layout), _by_row(weighted.setting, layout))
            placed.append((layout, weighted))
        return placed

    def _layout(self, batch: Batch, packing: str) -> Layout:
        """How a batch is laid into rows; kept for the last batch, which a reference computed online meets twice in a row."""
        if self._laid is None or self._laid[0]() is not batch or self._laid[1] != packing:
            laid = self.backbone.kind.layout(self.backbone, batch, packing)
            # Rows of their own that may not even stand side by side with padding masked are computed one by one.
            laid = replace(laid, alone=True) if self.backbone.abilities.masked and laid.segments is None else laid
            self._laid = (weakref.ref(batch), packing, laid)
        return self._laid[2]

    def _pass(self, layout: Layout, weighted: WeightedPass) -> Pass:
        """One pass's hidden states at the positions that predict the response tokens."""
        weight = weighted.weight[layout.row_K] if isinstance(weighted.weight, Tensor) else weighted.weight
        if self.mixed and isinstance(weighted.setting, Tensor):
            # The head, too, may not see rows of several settings.
            logits_KV = self._by_pieces(layout, weighted, lambda rows: self.backbone.kind.outputs(self.backbone, rows), dim=0)
            return Pass(weight, lambda some_kV: some_kV, logits_KV)
        hidden_KD = self._by_pieces(layout, weighted, lambda rows: self.backbone.kind.hidden(self.backbone, rows), dim=0)

        def head(some_kD: Tensor) -> Tensor:
            # A tuner that changes the head too runs there at the setting of the pass.
            with self.tuner.at(weighted.setting) if self.tuner.edits_head else nullcontext():
                return self.backbone.kind.head(self.backbone, some_kD)

        return Pass(weight, head, hidden_KD)

    def _by_pieces(
        self, layout: Layout, weighted: WeightedPass, run: Callable[[Layout], Tensor], dim: int, of_rows: bool = False
    ) -> Tensor:
        """What `run` gives for a pass, its K tokens (or its rows) along `dim`; in several passes where rows may not differ, or
        not stand side by side."""
        if not layout.alone and not (self.mixed and isinstance(weighted.setting, Tensor)):
            return self._set(layout, weighted.setting, run)
        every_R = torch.arange(len(layout.ids_RT), device=layout.ids_RT.device)
        setting_R = torch.as_tensor(weighted.setting, dtype=torch.float32, device=every_R.device).expand(len(every_R))
        found, places = [], []
        for label in (every_R if layout.alone else setting_R).unique():
            rows_R = (every_R if layout.alone else setting_R) == label
            rows, place_K = layout.only(rows_R)
            found.append(self._set(rows, float(setting_R[rows_R][0]), run))
            places.append(rows_R.nonzero()[:, 0] if of_rows else place_K)
        return torch.cat(found, dim).index_select(dim, torch.cat(places).argsort())

    def _set(self, layout: Layout, setting: Strength, run: Callable[[Layout], Tensor]) -> Tensor:
        self._running = layout, setting
        with self.tuner.at(setting):
            return run(layout)

    @contextmanager
    def _again(self, layout: Layout, setting: Strength) -> Iterator[None]:
        with attention_of(self.backbone.model, layout), self.tuner.at(setting):
            yield


def _by_row(setting: Strength, layout: Layout) -> Strength:
    if not isinstance(setting, Tensor):
        return setting
    assert layout.group_R is not None  # `layout` gives rows of their own to strengths that differ
    groups = int(layout.group_R[-1]) + 1
    if len(setting) != groups:
        raise ControlError(f"{len(setting)} strengths were given for a batch of {groups} groups; give one, or one per group.")
    return setting[layout.group_R]


def token_logprobs(passes: Sequence[Pass], target_K: Tensor) -> Tensor:
    """log p(target) in nats, fp32, of K tokens under the mixture of some passes; weights are numbers, or one per token.

    Logits exist for one chunk at a time and are made again for the gradient.
    """
    if len(target_K) <= CHUNK_TOKENS:
        return _scores(passes, target_K)
    recompute = torch.is_grad_enabled() and any(each.hidden_KD.requires_grad for each in passes)
    parts = []
    for begin in range(0, len(target_K), CHUNK_TOKENS):
        piece = slice(begin, begin + CHUNK_TOKENS)
        inputs = ([each.piece(piece) for each in passes], target_K[piece])
        parts.append(checkpoint(_scores, *inputs, use_reentrant=False) if recompute else _scores(*inputs))
    return torch.cat(parts)


def token_ranks(passes: Sequence[Pass], target_K: Tensor) -> tuple[Tensor, Tensor]:
    """`token_logprobs` without a gradient, and for each token 1 where another one is likelier, else 0."""
    values, others = [], []
    for begin in range(0, len(target_K), CHUNK_TOKENS):
        piece = slice(begin, begin + CHUNK_TOKENS)
        logits_KV = _mixed([each.piece(piece) for each in passes])
        values.append(-F.cross_entropy(logits_KV, target_K[piece], reduction="none"))
        others.append((logits_KV.argmax(-1) != target_K[piece]).float())
    return torch.cat(values), torch.cat(others)


def token_divergences(fixed: Sequence[Pass], learned: Sequence[Pass], *, learned_first: bool = False) -> Tensor:
    """KL(fixed || learned) of the next token in nats, fp32, at each of K positions, each side a mixture of passes; with
    `learned_first` KL(learned || fixed). No gradient goes to `fixed`. Logits exist for one chunk at a time."""
    parts = []
    for begin in range(0, len(learned[0].hidden_KD), CHUNK_TOKENS):
        piece = slice(begin, begin + CHUNK_TOKENS)
        sides = ([each.piece(piece) for each in side] for side in (fixed, learned))
        parts.append(checkpoint(_divergences, *sides, learned_first, use_reentrant=False))
    return torch.cat(parts)


def sum_by_member(values_K: Tensor, member_K: Tensor, groups: int, members: int) -> Tensor:
    """Per-token values added up per member, shape groups x members."""
    return values_K.new_zeros(groups * members).index_add(0, member_K, values_K).reshape(groups, members)


def _divergences(fixed: Sequence[Pass], learned: Sequence[Pass], learned_first: bool) -> Tensor:
    with torch.no_grad():
        fixed_KV = _mixed(fixed).log_softmax(-1)
    learned_KV = _mixed(learned).log_softmax(-1)
    first_KV, second_KV = (learned_KV, fixed_KV) if learned_first else (fixed_KV, learned_KV)
    return (first_KV.exp() * (first_KV - second_KV)).sum(-1)


def _scores(passes: Sequence[Pass], target_K: Tensor) -> Tensor:
    return -F.cross_entropy(_mixed(passes), target_K, reduction="none")


def _mixed(passes: Sequence[Pass]) -> Tensor:
    """Weighted sum of logits in fp32; a single pass of weight 1 is left as it is."""
    first = passes[0]
    if len(passes) == 1 and isinstance(first.weight, float) and first.weight == 1.0:
        return first.logits()
    logits_KV = torch.zeros((), device=first.hidden_KD.device)
    for each in passes:
        weight = each.weight[:, None] if isinstance(each.weight, Tensor) else each.weight
        logits_KV = logits_KV + weight * each.logits()
    return logits_KV
