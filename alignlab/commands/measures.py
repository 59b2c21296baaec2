"""`python -m alignlab lm-eval`, the harness's own command with finished runs among its models, and `judge-agreement`, how far a
judge agrees with people."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from alignlab.errors import ConfigError


def add_lm_eval(commands: Any) -> None:
    """The command. `commands`: the sub-parsers of argparse."""
    parser = commands.add_parser(
        "lm-eval",
        help="lm-evaluation-harness on a finished run: lm-eval run --model alignlab --model_args run=FOLDER,strength=1.5 ...",
        add_help=False,
    )
    parser.add_argument("words", nargs=argparse.REMAINDER, help="what lm-eval gets")
    parser.set_defaults(run=_lm_eval)


def _lm_eval(given: argparse.Namespace) -> None:
    """Registers the model `alignlab`, and calls the harness."""
    if find_spec("lm_eval") is None:
        raise ConfigError("lm-evaluation-harness is not installed; pip install 'alignlab[lm_eval]'.")
    from lm_eval.__main__ import cli_evaluate

    from alignlab.commands import harness_model  # noqa: F401  registers the model

    before, sys.argv = sys.argv, ["lm-eval", *given.words]
    try:
        cli_evaluate()
    finally:
        sys.argv = before


def add_judge_agreement(commands: Any) -> None:
    """The command and its options. `commands`: the sub-parsers of argparse."""
    parser = commands.add_parser("judge-agreement", help="a judge beside the human labels of PandaLM's test set")
    parser.add_argument("file", type=Path, help="testset-v1 as JSON lines, .gz too")
    parser.add_argument("--model", required=True, help="the judge's name on its server")
    parser.add_argument("--base-url", help="of the server; default: as OPENAI_BASE_URL says, else OpenAI's")
    parser.add_argument("--limit", type=int, help="the first pairs only")
    parser.add_argument("--verdicts", type=Path, default=Path("runs/.store/verdicts"), help="the folder that keeps verdicts")
    parser.set_defaults(run=_agreement)


def _agreement(given: argparse.Namespace) -> None:
    """Asks about every pair in both orders, and prints accuracy, kappa and the bias of the position."""
    from alignlab.evaluation.config import JudgeConfig
    from alignlab.evaluation.judging import Server, agreement, judge_pairs, people

    config = JudgeConfig(
        given.model,
        given.base_url,
        "pairwise",
        None,
        None,
        "chosen",
        "three",
        second_turn_strength=None,
        temperature=0.0,
        max_tokens=1024,
        parallel=8,
        retries=5,
        seconds=120.0,
    )
    config.check("judge")
    questions, answers, labels = people(given.file, given.limit)
    ours, others = [(one,) for one, _ in answers], [(two,) for _, two in answers]
    pairs, counts = judge_pairs(Server(config, given.verdicts), questions, ours, others, "three")
    found = agreement(pairs, labels)
    print(f"{given.model} on {len(labels)} pairs, of which {found.n} were read in both orders ({dict(counts)})")
    print(f"accuracy {found.accuracy:.3f}, kappa {found.kappa:.3f}")
    print(f"the first answer wins in both orders in {found.first_bias:.3f} of them, the second in {found.second_bias:.3f}")
