"""lm-evaluation-harness around a policy at each point: log-likelihoods by `Policy.greedy`, texts by our decoder, its numbers as
measurements. The harness itself is imported where it is asked for (`harness_model`)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch

from alignlab.data.batching import whole
from alignlab.errors import ConfigError
from alignlab.evaluation import Point
from alignlab.evaluation.config import EvaluationConfig
from alignlab.evaluation.statistics import CONFIDENCE, NOT_ESTIMABLE, Measurement, item_names
from alignlab.evaluation.suite import EvaluationContext
from alignlab.models.answers import continued
from alignlab.models.policy import Policy
from alignlab.models.sampling import Sampling
from alignlab.records import Encoded, EncodedGroup

MOST_ROWS = 64
"""Responses of one pass at most."""
NEW_TOKENS = 256
"""Of a text for which a task names no number, as the harness has it."""
NEW_TOKENS_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
DECODING = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "no_repeat_ngram_size")
"""Settings of a task that have the same name and meaning in `Sampling`."""
UNUSED = ("do_sample", "until", "num_beams", "max_length", *NEW_TOKENS_NAMES, *DECODING)
Request = tuple[tuple[int, ...], tuple[int, ...]]
"""Ids of a context and of what continues it."""


class LmEval:
    """Tasks of the harness, each metric as task/metric, or task/metric/filter where a task has several filters."""

    def __init__(self, context: EvaluationContext) -> None:
        self._context = context
        self._tasks: Any = None

    def measure(self, point: Point) -> list[Measurement]:
        """`average`: the plain mean of the first metric of each task and group that was asked for; then every metric of each
        task and group, with the harness's standard error as a normal interval, and that, the version and the shots as details.
        Raises ConfigError for a task that the harness does not know."""
        from alignlab.evaluation.harness_model import evaluated, known_tasks

        config = self._context.config.lm_eval
        if self._tasks is None:
            self._tasks = known_tasks(config)
        found = evaluated(
            self._context.policy, point, config, self._context.config.sampling_seed, self._tasks, self._context.begun
        )
        return measurements(found, config.tasks)


def look(config: EvaluationConfig) -> None:
    """Finds the tasks that are asked for, and reads the data of those that have it in files. Raises ConfigError for a task that
    is not known and for one whose file or data cannot be read."""
    from alignlab.evaluation.harness_model import known_tasks, read_local

    read_local(known_tasks(config.lm_eval), config.lm_eval.tasks)


@dataclass(frozen=True)
class _Score:
    """A metric of a task: its name in our report, the value, the standard error (nan if the harness gives none)."""

    metric: str
    value: float
    error: float
    n: int


def measurements(found: Mapping[str, Any], asked: Sequence[str]) -> list[Measurement]:
    """The results of the harness's `simple_evaluate` as ours. `asked`: the tasks and groups, whose first metrics are averaged;
    the standard error of the average takes them for independent."""
    rows: list[Measurement] = []
    first: dict[str, _Score] = {}
    for task, numbers in found["results"].items():
        scores = list(_scores(task, numbers, found))
        rows += [_measurement(score, task, found) for score in scores]
        if task in asked and scores:
            first[task] = scores[0]
    if not first:
        raise ConfigError(f"lm-evaluation-harness gave no number for {', '.join(asked)}; name tasks that have a metric.")
    count = len(first)
    error = math.sqrt(sum(score.error**2 for score in first.values())) / count
    value = sum(score.value for score in first.values()) / count
    n = sum(score.n for score in first.values())
    named = ", ".join(score.metric for score in first.values())
    return [Measurement("average", value, n, *_interval(value, error), details=f"of {named}"), *rows]


def _scores(task: str, numbers: Mapping[str, Any], found: Mapping[str, Any]) -> Sequence[_Score]:
    """The metrics of a task in the harness's order; its keys are `metric,filter` and `metric_stderr,filter`."""
    keys = [key for key, value in numbers.items() if "," in key and "_stderr," not in key and isinstance(value, (int, float))]
    filters = {key.partition(",")[2] for key in keys}
    made = []
    for key in keys:
        metric, _, filtered = key.partition(",")
        error = numbers.get(f"{metric}_stderr,{filtered}")
        name = f"{task}/{metric}" if len(filters) == 1 else f"{task}/{metric}/{filtered}"
        n = _count(task, numbers, found)
        made.append(_Score(name, float(numbers[key]), float(error) if isinstance(error, (int, float)) else math.nan, n))
    return made


def _count(task: str, numbers: Mapping[str, Any], found: Mapping[str, Any]) -> int:
    """Questions of a task that were asked; of a group, those of its tasks."""
    counts = found.get("n-samples", {})
    if task in counts:
        return int(counts[task]["effective"])
    if "sample_len" in numbers:
        return int(numbers["sample_len"])
    members = found.get("group_subtasks", {}).get(task, ())
    return sum(_count(each, found["results"].get(each, {}), found) for each in members)


def _measurement(score: _Score, task: str, found: Mapping[str, Any]) -> Measurement:
    version, shots = found.get("versions", {}).get(task), found.get("n-shot", {}).get(task)
    said = [f"lm-eval {found.get('lm_eval_version', 'of unknown version')}"]
    said += [f"task version {version}"] if version not in (None, "N/A", "Yaml") else []
    said += [f"{shots} shots"] if isinstance(shots, int) else []
    said += [] if math.isnan(score.error) else [f"standard error {score.error:.4g}"]
    items = _items(score, task, found)
    return Measurement(score.metric, score.value, score.n, *_interval(score.value, score.error), items, details=", ".join(said))


def _items(score: _Score, task: str, found: Mapping[str, Any]) -> dict[str, float]:
    """The value of each question, where the metric is their mean."""
    metric, _, filtered = score.metric.removeprefix(f"{task}/").partition("/")
    samples = [each for each in found.get("samples", {}).get(task, ()) if not filtered or each["filter"] == filtered]
    values = [each.get(metric) for each in samples]
    if not values or not all(isinstance(value, (int, float)) for value in values):
        return {}
    numbers = [float(value) for value in values if value is not None]
    if not math.isclose(sum(numbers) / len(numbers), score.value, rel_tol=1e-9, abs_tol=1e-9):
        return {}
    return dict(zip(item_names([each["doc_hash"] for each in samples]), numbers, strict=True))


def _interval(value: float, error: float) -> tuple[float, float]:
    """The normal interval; none without a standard error, or with one of 0, which a few equal items give."""
    if not error > 0:  # nan too
        return NOT_ESTIMABLE
    half = NormalDist().inv_cdf((1 + CONFIDENCE) / 2) * error
    return value - half, value + half


def likelihoods(
    policy: Policy, point: Point, requests: Sequence[Request], tokens: int, kept: MutableMapping[int, Any] | None = None
) -> list[tuple[float, bool]]:
    """log p(continuation | context) in nats of each request, and whether greedy decoding writes it.

    Requests of one context run as one group, whose context is computed once where the backbone can do that. Texts longer than
    the model's room lose their beginning. `tokens`: of one pass at most, padding included. `kept`: as in `answers.scored`.
    """
    groups = _grouped(requests, policy.room)
    kept = {} if kept is None else kept
    found: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
    with torch.inference_mode(), point.set(policy):
        for number, chosen in enumerate(_batches(list(groups), tokens)):
            if number not in kept:
                batch = whole([group for group, _ in chosen], policy.backbone.codec.pad).to(policy.backbone.device)
                kept[number] = [found_GM.tolist() for found_GM in policy.greedy(batch)]
            for (_, places), totals, greedy in zip(chosen, *kept[number], strict=True):
                for place, total, written in zip(places, totals, greedy, strict=True):
                    found[place] = (total, written)
    return found


_Placed = tuple[EncodedGroup, tuple[int, ...]]


def _grouped(requests: Sequence[Request], room: int) -> list[_Placed]:
    """Requests of one context together, MOST_ROWS at most, each with its place; an empty continuation has log-likelihood 0."""
    places: dict[tuple[int, ...], list[int]] = {}
    for place, (context, continuation) in enumerate(requests):
        if continuation:
            places.setdefault(context, []).append(place)
    made: list[_Placed] = []
    for every in places.values():
        for begin in range(0, len(every), MOST_ROWS):
            some = every[begin : begin + MOST_ROWS]
            made.append((EncodedGroup("a request", tuple(_encoded(*requests[place], room) for place in some)), tuple(some)))
    return made


def _encoded(context: tuple[int, ...], continuation: tuple[int, ...], room: int) -> Encoded:
    ids = (*context, *continuation)
    lost = max(0, len(ids) - room)
    return Encoded(ids[lost:], max(len(context) - lost, 0))


def _batches(groups: list[_Placed], tokens: int) -> list[list[_Placed]]:
    """Groups of equally many members, of like length, of so many tokens together."""
    groups.sort(key=lambda each: (len(each[1]), -each[0].length, each[1]))
    made: list[list[_Placed]] = []
    width = 0
    for each in groups:
        group, members = each[0], len(each[1])
        fits = made and members == len(made[-1][0][1])
        if fits and (len(made[-1]) + 1) * members * width <= tokens and (len(made[-1]) + 1) * members <= MOST_ROWS:
            made[-1].append(each)
        else:
            made.append([each])
            width = group.length
    return made


def written(
    policy: Policy,
    point: Point,
    prompts: Sequence[tuple[int, ...]],
    settings: Sequence[Mapping[str, Any]],
    seed: int,
    kept: Callable[[int], MutableMapping[int, Any]] | None = None,
) -> list[str]:
    """What follows each prompt, decoded as its task says. Prompts that leave no room lose their beginning. `kept`: of the
    texts of each way of decoding, by its number, the batches as in `answers.scored`."""
    texts = [""] * len(prompts)
    samplings = [sampling_of(each) for each in settings]
    for number, sampling in enumerate(dict.fromkeys(samplings)):
        places = [place for place, own in enumerate(samplings) if own == sampling]
        room = policy.prompt_room(sampling.max_new_tokens)
        if room < 1:
            raise ConfigError(
                f"a task asks for {sampling.max_new_tokens} new tokens, and the model has room for {policy.room} in all; lower"
                " max_gen_toks in its generation_kwargs."
            )
        cut = [prompts[place][-room:] for place in places]
        found = continued(policy, cut, point.strength, point.mixture, sampling, seed, kept and kept(number))
        for place, text in zip(places, found, strict=True):
            texts[place] = text
    return texts


def sampling_of(settings: Mapping[str, Any]) -> Sampling:
    """How a task's `generation_kwargs` ask for text: greedy unless they ask for samples or give a temperature. Raises
    ConfigError for a setting that our decoder does not have."""
    strange = [key for key, value in settings.items() if key not in UNUSED and value is not None]
    if strange:
        raise ConfigError(
            f"a task decodes with {', '.join(strange)}, which this decoder does not have; leave it out of its file."
        )
    until = settings.get("until") or []
    new = next((int(settings[key]) for key in NEW_TOKENS_NAMES if settings.get(key) is not None), NEW_TOKENS)
    drawn = settings.get("do_sample")
    temperature = float(settings.get("temperature") or 0.0)
    given = {key: settings[key] for key in DECODING if settings.get(key) is not None and key != "temperature"}
    return Sampling(
        max_new_tokens=new,
        temperature=0.0 if drawn is False else (temperature or 1.0) if drawn else temperature,
        stop=tuple(each for each in ([until] if isinstance(until, str) else until) if each),
        beams=int(settings.get("num_beams") or 1),
        **{"top_p": 1.0, **given},
    )
