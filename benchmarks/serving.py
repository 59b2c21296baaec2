"""Requests of mixed strengths to a server of a RED policy: many clients, whose answers are written together, beside one client.

    python benchmarks/serving.py [--model FOLDER] [--requests 64] [--clients 16] [--new 64] [--rounds 3] [--threads 2]

Without --model, stories260k (ALIGNLAB_SHARED or ../shared). RED's numbers are drawn near the identity, strengths are 0, 0.5, 1
and 1.5 in turn, decoding is greedy, and every answer has --new tokens. Server and clients share one process. Both sides answer
the same requests, round by round, and all answers are compared. Needs alignlab[serve].
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir

ROOT = Path(__file__).parents[1]
STRENGTHS = (0.0, 0.5, 1.0, 1.5)
SUBJECTS = ("a dog", "a kite", "her mother", "the sea", "a red ball", "the old house", "a friend", "a loud storm")


def main(words: Sequence[str] | None = None) -> None:
    """Requests and tokens per second of both sides, and their ratio with its range."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args(words)
    torch.set_num_threads(given.threads)
    model = given.model or Path(os.environ.get("ALIGNLAB_SHARED", ROOT.parent / "shared")) / "models" / "stories260k"
    seconds: dict[int, list[float]] = {1: [], given.clients: []}
    differing = 0
    with listening(_application(_policy(model), given.clients, given.new)) as address:
        _answers(address, given.clients, given.clients, given.new)
        for _ in range(given.rounds):
            texts = []
            for clients, taken in seconds.items():
                begin = time.perf_counter()
                texts.append(_answers(address, clients, given.requests, given.new))
                taken.append(time.perf_counter() - begin)
            differing += sum(one != other for one, other in zip(*texts, strict=True))
    for clients, taken in seconds.items():
        speed = given.requests / statistics.median(taken)
        print(f"{model.name}, {clients} at a time: {speed:.2f} requests/s, {speed * given.new:.0f} tokens/s")
    ratios = sorted(one / many for one, many in zip(*seconds.values(), strict=True))
    print(
        f"{given.clients} at a time / one: {statistics.median(ratios):.2f}x (n = {given.rounds}, {ratios[0]:.2f} to"
        f" {ratios[-1]:.2f}); answers that differ: {differing} of {given.rounds * given.requests}"
    )


def _policy(model: Path) -> Any:
    """A model with a RED edit of scales near 1 and shifts near 0."""
    from alignlab.config import GROUPS, parse
    from alignlab.models.policy import Policy
    from alignlab.tuners import TUNERS

    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = parse(compose("run", ["method=red", "model=local", f"model.path={model.resolve()}"]))
    backbone = GROUPS["model"]["local"].build(config.model, start="pretrained", seed=0, device="cpu")
    policy = Policy(backbone, TUNERS["red"].build(config.tuner, backbone.model, None))
    generator = torch.Generator().manual_seed(0)
    for parameter in policy.tuner.parameters():
        parameter.data.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return policy


def _application(policy: Any, rows: int, new: int) -> Any:
    """The server's routes on the policy. No id ends an answer, so that all have the same length."""
    from alignlab.serving.app import application
    from alignlab.serving.engine import Engine, Limits

    policy.backbone.codec.ends = ()
    policy.backbone.model.generation_config.eos_token_id = None
    return application(Engine({"red": policy}, Limits(new, None, rows, rows)), body_bytes=10_000)


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """The address of a server of these routes in a thread of its own, which ends with the block."""
    import uvicorn

    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def _answers(address: str, clients: int, requests: int, new: int) -> list[str]:
    """The answers to the first requests, by so many clients at a time."""
    from openai import OpenAI

    with OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client, ThreadPoolExecutor(clients) as pool:

        def answer(number: int) -> str:
            made = client.completions.create(
                model="red",
                prompt=f"Once upon a time, there was {SUBJECTS[number % len(SUBJECTS)]}",
                max_tokens=new,
                temperature=0,
                extra_body={"strength": STRENGTHS[number // len(SUBJECTS) % len(STRENGTHS)]},
            )
            assert made.usage is not None
            assert made.usage.completion_tokens == new
            return str(made.choices[0].text)

        return list(pool.map(answer, range(requests)))


if __name__ == "__main__":
    main()
