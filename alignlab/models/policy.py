"""A backbone that carries a tuner: the verbs that objectives, suites and users call, and the contexts that steer them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers.generation.streamers import BaseStreamer

from alignlab.errors import ConfigError, ControlError, ModelError
from alignlab.models.backbone import Backbone
from alignlab.models.budget import Budget, Footprint
from alignlab.models.controls import WITHOUT, ClassMixture, Controls, insert_prefixes
from alignlab.models.cut import attention_of
from alignlab.models.decode import DECODE_ROWS, answers
from alignlab.models.layout import Layout, can_share
from alignlab.models.logprobs import Logprobs, Pass, sum_by_member, token_divergences, token_logprobs
from alignlab.models.probes import attention_in, described, mixed
from alignlab.models.sampling import Sampling
from alignlab.models.strength import HasStrength, Strength, WeightedPass, as_strength, checked_strengths
from alignlab.records import Batch


class Policy:
    """What is trained, evaluated and used. The tuner sits inside `backbone.model`; `tuner` sets it. `packing`: which batches
    are
    computed without padding, all in one row: pairs (those whose members share a prefix), all or off; where the backbone can.
    `mixed`: why rows of one pass cannot differ in their setting, though the tuner has it so; empty where they can."""

    def __init__(
        self, backbone: Backbone, tuner: HasStrength, *, packing: str = "pairs", pass_gib: float | None = None
    ) -> None:
        self.backbone = backbone
        self.tuner = tuner
        self.budget = Budget(Footprint.of(backbone.model, backbone.model.dtype.itemsize), pass_gib)
        self.packing = packing
        with tuner.off():
            _ = backbone.abilities  # of the backbone alone, where loading has not asked
        self.mixed = mixed(backbone, tuner) if tuner.per_row else str(getattr(tuner, "one_strength", ""))
        if self.mixed:
            tuner.per_row = False
        if tuner.controls is not None:
            tuner.controls.check_template(backbone.codec.template_hash)
        self._passes: tuple[WeightedPass, ...] | None = None
        self._running: tuple[Layout, Strength] | None = None
        self._laid: tuple[weakref.ref[Batch], bool, Layout] | None = None

    @property
    def model(self) -> nn.Module:
        """The module that holds every parameter."""
        return self.backbone.model

    @property
    def room(self) -> int:
        """Tokens of prompt and answer together, beside the longest control."""
        return self.backbone.context - (self.tuner.controls.longest if self.tuner.controls else 0)

    def prompt_room(self, new: int) -> int:
        """Tokens that a prompt may have where so many are to follow; of an encoder-decoder model, whose answer is a text of its
        own, all that there is room for."""
        return self.room - (0 if self.backbone.model.config.is_encoder_decoder else new)

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
        placed = self._placed(batch)
        layout = placed[0][0]
        value_K = token_logprobs([self._pass(layout, weighted) for layout, weighted in placed], layout.target_K)
        groups, members, _ = batch.ids_GMT.shape
        ones_K = torch.ones_like(value_K)
        return Logprobs(
            total_GM=sum_by_member(value_K, layout.member_K, groups, members),
            tokens_GM=sum_by_member(ones_K, layout.member_K, groups, members),
        )

    def class_scores(self, batch: Batch) -> Tensor:
        """Scores of the classes of each text before softmax, or the number that it is told to be: groups x members x classes,
        fp32. Raises ModelError where the backbone is no classifier."""
        groups, members, _ = batch.ids_GMT.shape
        total_RC = torch.zeros((), device=batch.ids_GMT.device)
        for layout, weighted in self._placed(batch):
            weight = weighted.weight[:, None] if isinstance(weighted.weight, Tensor) else weighted.weight
            total_RC = total_RC + weight * self._by_pieces(layout, weighted, self._class_scores, dim=0, of_rows=True)
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

    def divergence(self, batch: Batch) -> Tensor:
        """KL(without the tuner || with it) of the next token in nats, at each position that predicts a response token, K."""
        (layout, weighted), *others = self._placed(batch)
        if others:
            raise ControlError("the divergence of a mixture of passes is not defined; ask at strength 0 or 1.")
        with torch.no_grad(), self.off():
            before = self._pass(layout, WeightedPass(1.0, 1.0))

        def head(some_kD: Tensor) -> Tensor:
            with self.off():
                return self.backbone.kind.head(self.backbone, some_kD)

        return token_divergences(replace(before, head=head), self._pass(layout, weighted))

    def respond(
        self,
        prompts: Sequence[str],
        *,
        strength: float | Sequence[float] = 1.0,
        control: ClassMixture | Sequence[ClassMixture] | None = None,
        sampling: Sampling,
        seed: int,
        streamer: BaseStreamer | None = None,
    ) -> list[str]:
        """Answers each prompt at one strength, or at one strength per prompt; or under a class (`control`), likewise.

        A class is a name, or a mapping from names to weights that add up to 1, which mixes their passes at the logits; "none"
        is the model without any. A row's text depends on its prompt, its strength or class, the seed and its place in
        `prompts`, not on the batch it ran in. `streamer` gets a single prompt's ids, and then each new one. Raises ControlError
        for a strength that is not a finite number, an unknown class, a list of the wrong length, beams over a mixture of
        passes, and a streamer for several prompts or beams.
        """
        if not self.backbone.model.can_generate():
            raise ModelError(f"model={self.backbone.name} writes no text; ask a classifier for its class_scores.")
        if self.backbone.abilities.cached:
            raise ModelError(
                f"model={self.backbone.name} cannot generate here: a step behind its cache is not the full pass"
                f" ({self.backbone.abilities.cached})."
            )
        strengths = checked_strengths(strength, len(prompts))
        chosen = None if control is None else self._classes().mixtures(control, len(prompts))
        if streamer is not None and (len(prompts) > 1 or sampling.beams > 1):
            raise ControlError(
                f"a streamer follows one answer as it is written; give one prompt ({len(prompts)} were given) and no beams."
            )
        encoded = self.backbone.codec.prompts(prompts)
        reserved = set(self.tuner.controls.reserved if self.tuner.controls else ())
        room = self.prompt_room(sampling.max_new_tokens)
        for prompt, ids in zip(prompts, encoded, strict=True):
            if not reserved.isdisjoint(ids):
                raise ControlError(f"prompt {prompt[:40]!r} holds a token that stands for a control; remove it.")
            if len(ids) > room:
                raise ConfigError(
                    f"prompt {prompt[:40]!r} has {len(ids)} tokens and {sampling.max_new_tokens} are to follow, but the model"
                    f" has room for {room} before them; shorten it or lower max_new_tokens."
                )
        if not prompts:
            return []
        alike: Sequence[Any] = strengths if chosen is None else [tuple(sorted(weights.items())) for weights in chosen]
        every = self._asked(strengths, chosen)
        mixed = self.tuner.per_row or not any(isinstance(weighted.setting, Tensor) for weighted in every)
        longest = max(map(len, encoded)) + self.backbone.context - self.room
        at_most = self.budget.texts(longest, sampling.max_new_tokens, len(every) * sampling.beams, DECODE_ROWS)
        batches = [
            (rows, self._asked([strengths[row] for row in rows], chosen and [chosen[row] for row in rows]))
            # Beams follow one pass, which texts at both ends of a dial do not have in common.
            for rows in _together(alike, mixed and (sampling.beams == 1 or len(every) == 1), at_most)
        ]
        texts = answers(self.backbone, self.tuner, encoded, batches, sampling, seed, streamer)
        return [self.backbone.codec.answer(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]

    @contextmanager
    def at(self, strength: Strength) -> Iterator[None]:
        """Every verb inside runs at this strength: a number, or a tensor with one number per group of the batch.

        Raises ControlError for a strength that is not finite, and in the verbs for a tensor of another length than the batch.
        """
        checked_strengths(strength.tolist() if isinstance(strength, Tensor) else strength)
        before, self._passes = self._passes, self.tuner.passes(strength)
        try:
            yield
        finally:
            self._passes = before

    @contextmanager
    def under(self, control: ClassMixture) -> Iterator[None]:
        """Every verb inside runs under this class, or mixture of classes; "none" is the model without any.

        Raises ControlError for an unknown class, and where the tuner has none.
        """
        controls = self._classes()
        before, self._passes = self._passes, controls.passes(controls.mixtures(control, 1))
        try:
            yield
        finally:
            self._passes = before

    @contextmanager
    def off(self) -> Iterator[None]:
        """Every verb inside is the backbone's without the tuner, bit for bit; as trained, where a stage moved the backbone."""
        before, self._passes = self._passes, (WeightedPass(1.0, 1.0),)
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
            each, setting_R = self._classes().insert_prefixes(batch)
            return [(self._layout(each, apart=True), WeightedPass(1.0, setting_R))]
        passes = self._passes or (WeightedPass(1.0, 1.0 if self.tuner.controls is None else WITHOUT),)
        apart = any(isinstance(number, Tensor) for weighted in passes for number in (weighted.weight, weighted.setting))
        members = batch.ids_GMT.shape[0] * batch.ids_GMT.shape[1]
        layouts = [self._layout(insert_prefixes(batch, [weighted.prefix] * members), apart) for weighted in passes]
        return [
            (layout, WeightedPass(_by_row(weighted.weight, layout), _by_row(weighted.setting, layout)))
            for layout, weighted in zip(layouts, passes, strict=True)
        ]

    def _layout(self, batch: Batch, apart: bool) -> Layout:
        """How a batch is laid into rows. Settings that differ (`apart`) need a row for each member."""
        shared = not apart and (self.packing == "all" or (self.packing == "pairs" and can_share(batch)))
        # A reference computed online meets the same batch twice in a row.
        if self._laid is None or self._laid[0]() is not batch or self._laid[1] != shared:
            laid = self.backbone.kind.layout(self.backbone, batch, shared)
            # Rows of their own that may not even stand side by side with padding masked are computed one by one.
            laid = replace(laid, alone=True) if self.backbone.abilities.masked and laid.segments is None else laid
            self._laid = (weakref.ref(batch), shared, laid)
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
            # The tuner may have changed the head too, so it runs at the setting of the pass.
            with self.tuner.at(weighted.setting):
                return self.backbone.kind.head(self.backbone, some_kD)

        return Pass(weight, head, hidden_KD)

    def _asked(self, strengths: Sequence[float], chosen: Sequence[Mapping[str, float]] | None) -> Sequence[WeightedPass]:
        """The passes of some texts, each at its strength, or where classes are chosen under its own."""
        if chosen:
            return self._classes().passes(chosen)
        return self.tuner.passes(as_strength(strengths, self.backbone.device))

    def _class_scores(self, layout: Layout) -> Tensor:
        return self.backbone.kind.class_scores(self.backbone, layout)

    def _by_pieces(
        self, layout: Layout, weighted: WeightedPass, run: Callable[[Layout], Tensor], dim: int, of_rows: bool = False
    ) -> Tensor:
        """What `run` gives for a pass, its K tokens (or its rows) along `dim`; in several passes where rows may not differ, or
        not stand side by side."""
        if not layout.alone and not (self.mixed and isinstance(weighted.setting, Tensor)):
            return self._set(layout, weighted.setting, run)
        every_R = torch.arange(len(layout.ids_RT), device=layout.ids_RT.device)
        setting_R = (
            weighted.setting
            if isinstance(weighted.setting, Tensor)
            else torch.full_like(every_R, weighted.setting, dtype=torch.float32)
        )
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

    def _classes(self) -> Controls:
        if self.tuner.controls is None:
            raise ControlError("this tuner has a strength and no classes; ask with strength= instead of control=.")
        return self.tuner.controls


def _together(alike: Sequence[Any], mixed: bool, at_most: int) -> Iterator[list[int]]:
    """Row numbers that are generated together: all where passes may be `mixed`, else those that are `alike`."""
    rows = list(range(len(alike)))
    sets = [rows] if mixed else [[row for row in rows if alike[row] == each] for each in dict.fromkeys(alike)]
    for chosen in sets:
        for start in range(0, len(chosen), at_most):
            yield chosen[start : start + at_most]


def _by_row(setting: Strength, layout: Layout) -> Strength:
    if not isinstance(setting, Tensor):
        return setting
    assert layout.group_R is not None  # `layout` gives rows of their own to strengths that differ
    groups = int(layout.group_R[-1]) + 1
    if len(setting) != groups:
        raise ControlError(f"{len(setting)} strengths were given for a batch of {groups} groups; give one, or one per group.")
    return setting[layout.group_R]
