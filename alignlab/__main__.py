"""What can be done with a finished run: `python -m alignlab status|table|plot|export`."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from alignlab.command_line import show_words
from alignlab.errors import AlignlabError, ConfigError, RunFolderError
from alignlab.tracking.ledger import Ledger


def main(words: Sequence[str] | None = None) -> int:
    """Returns the exit status: 0, or 1 after an error that is the user's to mend."""
    parser = argparse.ArgumentParser(prog="python -m alignlab", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    status = commands.add_parser("status", help="the state of every run below a folder, from its ledger")
    status.add_argument("folder", nargs="?", default="runs", type=Path)
    table = commands.add_parser("table", help="every number of the finished runs below a folder, as CSV")
    table.add_argument("folder", nargs="?", default="runs", type=Path)
    shape = table.add_mutually_exclusive_group()
    shape.add_argument("--means", action="store_true", help="one line per setting: mean over seeds, lowest and highest")
    shape.add_argument(
        "--against", nargs="+", default=[], metavar="KEY=VALUE", help="each setting minus the one named here, paired by seed"
    )
    plot = commands.add_parser("plot", help="a figure of the finished runs below a folder: every setting along the dial")
    plot.add_argument("folder", type=Path)
    plot.add_argument("--to", required=True, type=Path, help="the picture to write, e.g. dial.png")
    for command in (table, plot):
        command.add_argument(
            "--where", nargs="+", default=[], metavar="KEY=A,B", help="only runs with these settings; none: not set"
        )
    plot.add_argument("--map", nargs=2, metavar=("ACROSS", "DOWN"), help="a heat map over two settings instead, at strength 1")
    plot.add_argument("--metrics", nargs="+", default=["toy/reward", "toy/capability"], help="suite/metric, two or more")
    export = commands.add_parser("export", help="a plain checkpoint that transformers loads without alignlab")
    export.add_argument("run", type=Path, help="a run folder")
    export.add_argument("--to", required=True, type=Path, help="the folder to write")
    export.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    export.add_argument("--control", help="the class to export, for a run with classes; none: the model without any")
    given = parser.parse_args(words)
    show_words(logging.INFO)
    try:
        if given.command == "status":
            return _status(given.folder)
        if given.command == "table":
            return _table(given.folder, _settings("--where", given.where), given.means, _settings("--against", given.against))
        if given.command == "plot":
            return _plot(given.folder, _settings("--where", given.where), given.to, given.metrics, given.map)
        return _export(given.run, given.to, given.dtype, given.control)
    except AlignlabError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _status(folder: Path) -> int:
    """One line per run."""
    found = sorted(folder.glob("**/status.json"))
    if not found:
        raise RunFolderError(f"no run below {folder}; give the folder that `paths.runs` names.")
    for path in found:
        status = Ledger(path.parent).read("status.json") or {}
        print(f"{status.get('state', 'unreadable'):9} {status.get('time', ''):26} {path.parent}  {status.get('error', '')}")
    return 0


def _settings(option: str, words: Sequence[str]) -> dict[str, list[str]]:
    """KEY=A,B as a key with its values."""
    odd = [word for word in words if "=" not in word]
    if odd:
        raise ConfigError(f"{option} {odd[0]!r} is not of the form KEY=A,B.")
    return {key: values.split(",") for key, _, values in (word.partition("=") for word in words)}


def _table(folder: Path, where: Mapping[str, Sequence[str]], over_seeds: bool, against: Mapping[str, Sequence[str]]) -> int:
    """CSV to standard output."""
    from alignlab.tables import differences, means, results

    frame = results(folder, where)
    made = differences(frame, against) if against else means(frame) if over_seeds else frame
    print(made.to_csv(index=False), end="")
    return 0


def _plot(
    folder: Path, where: Mapping[str, Sequence[str]], to: Path, metrics: Sequence[str], over: tuple[str, str] | None
) -> int:
    """A picture of a sweep: along the dial, or over two settings."""
    from alignlab.plots import draw_map, draw_sweep
    from alignlab.tables import along_a_dial, crossed, means, results

    if over:
        frame = results(folder, where)
        print(f"drawn: {draw_map({metric: crossed(frame, *over, metric) for metric in metrics}, to)}")
        return 0
    frame = along_a_dial(means(results(folder, where)))
    known = set(frame.suite + "/" + frame.metric)
    lost = [metric for metric in metrics if metric not in known]
    if lost or len(metrics) < 2:
        raise ConfigError(f"--metrics {' '.join(metrics)}: give two or more of {', '.join(sorted(known))}.")
    print(f"drawn: {draw_sweep(frame, to, [(m.partition('/')[0], m.partition('/')[2]) for m in metrics])}")
    return 0


def _export(run: Path, to: Path, dtype: str, control: str | None) -> int:
    """Merges what was learned into the backbone and writes a plain checkpoint."""
    from alignlab.finished import export

    difference = export(run, to, dtype, control)
    print(f"exported to {to}; largest difference of logits {difference:.3g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
