"""The harness's own model class around a policy. Importing this module needs lm-evaluation-harness (alignlab[lm_eval])."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from lm_eval import simple_evaluate
from lm_eval.api.model import TemplateLM
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from alignlab.errors import ConfigError
from alignlab.evaluation import Point
from alignlab.evaluation.config import HarnessConfig
from alignlab.evaluation.harness import likelihoods, written
from alignlab.evaluation.suite import Begun
from alignlab.models.policy import Policy
from alignlab.registry import unknown

IN_FILES = ("json", "csv", "text", "parquet", "arrow")
"""What a task's `dataset_path` says whose data lies in files."""


class PolicyLM(TemplateLM):
    """A policy at one point, as the harness asks models. Texts are tokenised as its own `hf` model does: by the tokenizer's
    defaults, without a second BOS. A window holds one token less than the model has room for, since the last token that is
    predicted is read too. `begun`: the batches of each list of requests that an earlier process has answered; the harness asks
    in the same order every time."""

    def __init__(self, policy: Policy, point: Point, tokens: int, seed: int, begun: Begun | None = None) -> None:
        super().__init__()
        self.tokenizer = policy.backbone.codec.tokenizer
        self._policy, self._point, self._tokens, self._seed = policy, point, tokens, seed
        self._device = policy.backbone.device
        self._begun = begun or Begun()
        self._lists = 0

    @property
    def eot_token_id(self) -> int:
        """EOS."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands in front of a text without a context: BOS, or EOS where there is none."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def max_length(self) -> int:
        """Tokens of context and continuation together."""
        return self._policy.room - 1

    @property
    def tokenizer_name(self) -> str:
        """For the harness's cache of requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Ids of a text."""
        if add_special_tokens is None and string.startswith(str(self.tokenizer.decode([self.prefix_token_id]))):
            add_special_tokens = False
        given = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer(string, verbose=False, **given)["input_ids"])

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Messages as text, as the tokenizer's template writes them."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
                **self._policy.backbone.codec.template.arguments,
            )
        )

    def _kept(self) -> Callable[[int], MutableMapping[int, Any]]:
        """The batches of the next list of requests, by the number of a part of it."""
        self._lists += 1
        of_list = f"lm_eval {self._lists} at {self._point}"
        return lambda part: self._begun.of(f"{of_list}, part {part}")

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        pairs = [(tuple(context), tuple(continuation)) for _, context, continuation in requests]
        found = likelihoods(self._policy, self._point, pairs, self._tokens, self._kept()(0))
        for (texts, _, _), answer in zip(requests, found, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return found

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """log p of whole texts in nats, each token once, in windows that follow one another."""
        windows: list[tuple[None, Any, Any]] = []
        counts = []
        for (text,) in (request.args for request in requests):
            every = get_rolling_token_windows(
                token_list=self.tok_encode(text), prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1
            )
            before = len(windows)
            windows += [(None, *make_disjoint_window(window)) for window in every]
            counts.append(len(windows) - before)
        values = iter(self._loglikelihood_tokens(windows))
        return [sum(next(values)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts by our decoder."""
        prompts = [tuple(self.tok_encode(context)) for context, _ in (request.args for request in requests)]
        settings = [given for _, given in (request.args for request in requests)]
        texts = written(self._policy, self._point, prompts, settings, self._seed, self._kept())
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts


def known_tasks(config: HarnessConfig) -> TaskManager:
    """The task files: those of `include` alone where they are enough, since to list all of the harness's takes seconds. Raises
    ConfigError for a task that neither has."""
    for defaults in (False, True) if config.include else (True,):
        tasks = TaskManager(include_path=config.include, include_defaults=defaults) if config.include else _own_tasks()
        missing = [name for name in config.tasks if not tasks.match_tasks([name])]
        if not missing:
            return tasks
    told = unknown("task of lm-evaluation-harness", missing[0], tasks.all_tasks).partition("known: ")[0]  # there are thousands
    raise ConfigError(f"{told}python -m alignlab lm-eval ls tasks lists them, and evaluation.lm_eval.include adds a folder.")


@cache
def _own_tasks() -> TaskManager:
    """The harness's own task files, listed once: every job of a plan and its evaluation ask for them."""
    return TaskManager(include_defaults=True)


def read_local(tasks: TaskManager, names: Sequence[str]) -> None:
    """Reads the data of the tasks that name files; of the hub nothing is fetched. Raises ConfigError where that fails."""
    for name in names:
        entry = tasks.task_index.get(name)
        if entry is None or (entry.cfg or {}).get("dataset_path") not in IN_FILES:
            continue
        try:
            tasks.load([name])
        except Exception as error:  # whatever a library of file formats raises
            raise ConfigError(
                f"the task {name} of {entry.yaml_path} cannot be read: {error.__cause__ or error}; mend its file, or its data."
            ) from error


def evaluated(
    policy: Policy, point: Point, config: HarnessConfig, seed: int, tasks: TaskManager, begun: Begun
) -> dict[str, Any]:
    """The harness's results at one point. Its seeds stay inside."""
    with _seeds_apart():
        found = simple_evaluate(
            model=PolicyLM(policy, point, config.tokens, seed, begun),
            tasks=list(config.tasks),
            num_fewshot=config.shots,
            limit=config.limit,
            apply_chat_template=config.chat,
            fewshot_as_multiturn=config.chat,
            task_manager=tasks,
            log_samples=True,
        )
    assert found is not None
    return {**found, "lm_eval_version": version("lm_eval")}


@contextmanager
def _seeds_apart() -> Iterator[None]:
    """Afterwards the random generators are where they were."""
    python, numpy = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
