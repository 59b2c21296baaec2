"""`python -m alignlab judge-agreement`: how far a judge agrees with people, before it is used."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


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
