"""python -m alignlab serve RUN [NAME=RUN+NAME=RUN ...]: finished runs as models of a server that answers as OpenAI's"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from alignlab.errors import ConfigError
from alignlab.serving.ranges import OUTSIDE
from alignlab.tracking.ledger import REPORT, Ledger

log = logging.getLogger(__name__)
KEY = "ALIGNLAB_API_KEY"
"""The variable that holds the server's key."""
PAGE = "/ui"
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def add_serve(commands: Any) -> None:
    """The command and its options. `commands`: the sub-parsers of argparse."""
    parser = commands.add_parser(
        "serve",
        help="finished runs as models of a server that answers as OpenAI's, with a strength or classes per request",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="run",
        help="a run folder, or NAME=FOLDER to name its model, else the folder is the name; NAME=FOLDER+NAME=FOLDER: adapters of"
        " one backbone as one model NAME+NAME, each with a strength of its own",
    )
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on; this machine alone by default")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    parser.add_argument("--key-file", type=Path, help=f"a file with the key that requests have to carry; or set {KEY}")
    parser.add_argument("--ui", action="store_true", help=f"the page {PAGE} too, with the dial and the run's curve")
    parser.add_argument(
        "--outside",
        choices=OUTSIDE,
        default="warn",
        help="a strength outside a run's safe range is answered with a warning, answered at the nearest end, or refused; a run"
        " without a range is answered at any",
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the code that a run's model brings")
    parser.add_argument("--new-tokens", type=_count, default=512, help="the most tokens of an answer")
    parser.add_argument(
        "--prompt-tokens", type=_count, help="the most tokens of a prompt; what the model has room for by default"
    )
    parser.add_argument("--rows", type=_count, default=16, help="answers that are written at a time")
    parser.add_argument("--waiting", type=_count, default=64, help="questions that may wait for a place; 429 beyond")
    parser.add_argument("--body-bytes", type=_count, default=2**20, help="the longest body of a request")
    parser.add_argument("--grace", type=_count, default=30, help="seconds that answers have to end in after SIGTERM")
    parser.set_defaults(run=_serve)


def _count(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} must be a whole number of at least 1")
    return int(word)


def _serve(given: argparse.Namespace) -> None:
    """Loads the runs, and answers until SIGTERM or Ctrl-C. Then no request is taken any more, and what is being answered is
    written to its end."""
    extra, needed = ("ui", ("gradio",)) if given.ui else ("serve", ())
    missing = [name for name in ("fastapi", "uvicorn", "openai", *needed) if find_spec(name) is None]
    if missing:
        raise ConfigError(f"not installed: {', '.join(missing)}; pip install 'alignlab[{extra}]'.")
    models = _named(given.runs)
    key = _key(given.key_file)
    import uvicorn

    from alignlab.evaluation.safe_range import read_range
    from alignlab.finished import load, result_of
    from alignlab.serving.app import application
    from alignlab.serving.engine import Engine, Limits

    policies = {
        model: load(folders.get(model, folders), given.device, trust_remote_code=given.trust_remote_code)
        for model, folders in models.items()
    }
    ranges = {
        model: {name: read_range(result_of(folder)) for name, folder in folders.items()} for model, folders in models.items()
    }
    for model, each in ranges.items():
        if policies[model].tuner.controls is None and (without := [name for name, safe in each.items() if safe is None]):
            log.info("model %s: no safe range was measured for %s; every strength is answered", model, ", ".join(without))
    engine = Engine(policies, Limits(given.new_tokens, given.prompt_tokens, given.rows, given.waiting), ranges, given.outside)
    alone = given.host in LOOPBACK
    if not alone and key is None:
        log.warning("serving on %s without a key: whoever reaches this machine can ask; set %s or --key-file.", given.host, KEY)
    app = application(
        engine,
        key=key,
        body_bytes=given.body_bytes,
        hosts=("127.0.0.1", "localhost", "[::1]") if alone else ("*",),
        page=PAGE if given.ui else None,
    )
    if given.ui:
        from alignlab.serving.page import mount

        measured = {model: {name: _measured(folder) for name, folder in folders.items()} for model, folders in models.items()}
        app = mount(app, engine, PAGE, measured, key)
    settings = uvicorn.Config(
        app, host=given.host, port=given.port, log_level="warning", timeout_graceful_shutdown=given.grace, server_header=False
    )
    server = uvicorn.Server(settings)
    for number in (signal.SIGTERM, signal.SIGINT):  # those before it runs; uvicorn raises its own once more when it has ended
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    with _listening(given.host, given.port) as listener:
        host = f"[{given.host}]" if ":" in given.host else given.host
        address = f"http://{host}:{listener.getsockname()[1]}"
        log.info("serving %s on %s/v1%s", ", ".join(policies), address, f", the page on {address}{PAGE}" if given.ui else "")
        server.run(sockets=[listener])


def _measured(folder: Path) -> list[dict[str, Any]]:
    """What a run's report has measured."""
    found: list[dict[str, Any]] = Ledger(folder).found(REPORT).get("results", [])
    return found


def _named(runs: Sequence[str]) -> dict[str, dict[str, Path]]:
    """The folders of each model by the names of its adapters; one alone has the model's name. Raises ConfigError for a name
    that stands twice, is empty or cannot be printed."""
    found: dict[str, dict[str, Path]] = {}
    for word in runs:
        parts = [_folder(part) for part in _parts(word)]
        names = [name for name, _ in parts]
        model = "+".join(names)
        if model in found or len(set(names)) < len(names) or not all(name and name.isprintable() for name in names):
            raise ConfigError(f"model {model!r} is named twice or not at all; name each run with NAME=FOLDER.")
        found[model] = dict(parts)
    return found


def _parts(word: str) -> list[str]:
    """The runs of one model. A plus may also stand in a folder's name."""
    whole = Path(word).exists() or Path(word.partition("=")[2] or word).exists()
    parts = [word] if whole else word.split("+")
    return parts if all("=" in part for part in parts) else [word]


def _folder(word: str) -> tuple[str, Path]:
    """A run's name and its folder."""
    named, equals, folder = word.partition("=")
    return (named, Path(folder)) if equals and not Path(word).exists() else (word.rstrip("/"), Path(word))


def _key(file: Path | None) -> str | None:
    """The key, from a file or the environment, None without one. Raises ConfigError for one that is empty or no ASCII."""
    try:
        key = os.environ.get(KEY) if file is None else file.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"--key-file={file} cannot be read ({error}); give a file with the key in it.") from error
    if key is not None and (not key or not key.isascii() or not key.isprintable()):
        raise ConfigError(f"the key in {KEY if file is None else file} must be ASCII text, and not empty.")
    return key


def _listening(host: str, port: int) -> socket.socket:
    """Raises ConfigError where the address is taken, or none of this machine's."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot listen on {host}, port {port} ({error}); choose others with --host and --port.") from error
