"""Figures and the page of a sweep."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from alignlab.__main__ import main
from alignlab.errors import ConfigError, RunFolderError
from alignlab.plots.sweep import draw
from alignlab.tables.sweep import Sweep, read_sweep
from tests.unit.made_sweeps import MadeSweep, number

PNG = b"\x89PNG\r\n\x1a\n"
NASTY = "</td><script>alert('&')</script> in /home/someone/secret"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rows at two ranks along a dial; one job failed, one never started."""
    folder = tmp_path_factory.mktemp("runs")
    sweep = MadeSweep(folder, "red/toy/t")
    for row, base in (("red", 0.0), ("lora", 0.25)):
        for rank in ("2", "16"):
            for seed in (0, 1):
                if (row, rank, seed) == ("lora", "16", 1):
                    sweep.failed(row, seed, NASTY, {"tuner.rank": rank})
                elif (row, rank) == ("lora", "2"):
                    sweep.job(row, seed, {"tuner.rank": rank})
                else:
                    results = [
                        number(f"toy/{metric}", base + strength * sign + seed / 8, strength)
                        for strength in (0.0, 1.0)
                        for metric, sign in (("reward", 0.5), ("capability", -0.1))
                    ]
                    sweep.done(row, seed, results, {"tuner.rank": rank})
    return folder


@pytest.fixture(scope="module")
def sweep(runs: Path) -> Sweep:
    return read_sweep(runs, "red/toy/t")


@pytest.fixture(scope="module")
def page(runs: Path) -> str:
    path = runs / "report.html"
    assert main(["report", "red/toy/t", "--runs", str(runs), "--to", str(path)]) == 0
    return path.read_text(encoding="utf-8")


def words_of(path: Path) -> str:
    """An SVG, which has its words as comments beside their shapes."""
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["curves", "dial", "frontier", "map"])
def test_every_kind_is_drawn_as_png_and_as_svg(sweep: Sweep, kind: str, tmp_path: Path) -> None:
    assert draw(sweep, kind, tmp_path / "a.png").read_bytes().startswith(PNG)
    assert ElementTree.parse(draw(sweep, kind, tmp_path / "a.svg")).getroot().tag.endswith("svg")


def test_the_same_numbers_make_the_same_svg(sweep: Sweep, tmp_path: Path) -> None:
    one, two = (draw(sweep, "dial", tmp_path / name).read_bytes() for name in ("a.svg", "b.svg"))

    assert one == two


def test_a_line_is_named_with_its_seeds_and_an_axis_with_n(sweep: Sweep, tmp_path: Path) -> None:
    said = words_of(draw(sweep, "dial", tmp_path / "a.svg"))

    assert "<!-- red, tuner.rank=2 (2 seeds) -->" in said
    assert "<!-- lora, tuner.rank=16 (1 seed) -->" in said
    assert "<!-- reward (n = 8 per seed) -->" in said


def test_a_map_has_a_cell_for_every_job_and_marks_the_one_that_did_not_run(sweep: Sweep, tmp_path: Path) -> None:
    said = words_of(draw(sweep, "map", tmp_path / "a.svg", ["toy/reward"]))

    # red: 0.5 and 0.625 at strength 1; lora at rank 16: seed 0 alone; at rank 2: nothing.
    assert [said.count(f"<!-- {cell} -->") for cell in ("0.562", "0.750", "no run")] == [2, 1, 1]
    assert "<image" not in said


@pytest.mark.parametrize(
    ("kind", "name", "options", "sentence"),
    [
        ("dial", "a.gif", {}, "pictures end in .png, .svg, .pdf"),
        ("dial", "a.png", {"metrics": ["toy/rewrad"]}, "did you mean toy/reward"),
        ("frontier", "a.png", {"metrics": ["toy/reward"]}, "give 2 or more of"),
        ("map", "a.png", {"over": ["row", "tuner.rnak"]}, "did you mean tuner.rank"),
    ],
)
def test_a_figure_that_cannot_be_drawn_is_one_sentence(
    sweep: Sweep, kind: str, name: str, options: dict[str, list[str]], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        draw(sweep, kind, tmp_path / name, **options)


@pytest.mark.parametrize("kind", ["curves", "dial"])
def test_a_sweep_of_which_nothing_is_done_has_no_figure(kind: str, tmp_path: Path) -> None:
    MadeSweep(tmp_path, "t").job("red", 0)

    with pytest.raises(RunFolderError, match="1 missing"):
        draw(read_sweep(tmp_path, "t"), kind, tmp_path / "a.png")


def test_the_plot_command_draws_a_sweep_and_says_what_is_not_done(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["plot", "red/toy/t", "--runs", str(runs), "--kind", "frontier", "--to", str(tmp_path / "a.png")])

    said = "not every job of red/toy/t is done, and only numbers that are here are drawn: 5 done, 2 missing, 1 failed."
    assert status == 0
    assert said in capsys.readouterr().out
    assert (tmp_path / "a.png").read_bytes().startswith(PNG)


class Asks(HTMLParser):
    """Collects what a page would run or fetch, and its names."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.names: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "action")]
        self.names += [value or "" for name, value in attrs if name == "id"]


def test_the_page_runs_nothing_and_asks_for_nothing(page: str) -> None:
    asks = Asks()
    asks.feed(page)

    assert not {"script", "link", "img", "image", "iframe"} & set(asks.tags)
    assert asks.addresses
    assert all(address.startswith("#") for address in asks.addresses)
    assert {address[1:] for address in asks.addresses} <= set(asks.names)
    assert len(asks.names) == len(set(asks.names))


def test_the_page_shows_errors_as_words_and_no_path_of_a_machine(page: str, runs: Path) -> None:
    assert "&lt;script&gt;" in page
    assert "/home/someone" not in page
    assert str(runs) not in page


def test_the_page_tells_every_job_the_rows_and_the_figures(page: str) -> None:
    assert page.count('class="missing"') == 2
    assert page.count('class="failed"') == 1
    assert "9 rows read, 8 kept, 1 dropped: too long" in page
    assert page.count("<svg") == 4
    assert "768 of 5,000" in page


def test_the_page_of_a_sweep_that_has_not_run_says_why_there_is_no_figure(tmp_path: Path) -> None:
    MadeSweep(tmp_path, "t").job("red", 0)

    assert main(["report", "t", "--runs", str(tmp_path), "--to", str(tmp_path / "r.html")]) == 0
    assert "no job of t has a number yet; 1 missing." in (tmp_path / "r.html").read_text()


class Tags(HTMLParser):
    """The tags and attributes of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, list[str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, [name for name, _ in attrs]))


def test_names_of_a_stranger_are_text_on_the_page_and_in_its_figures(tmp_path: Path) -> None:
    hostile = "--><script>x</script><img src=y onerror=z>$\\x{$ & \"'"
    sweep = MadeSweep(tmp_path / "runs", "t", words=(hostile,))
    for value in ("1", hostile):
        run = sweep.job("row", 0, {"key": value.replace("/", "")})
        run.write("config.json", {"model": {"name": hostile}})
        run.write("env.json", {"commit": hostile, "python": hostile, "packages": {"torch": hostile}, "system": hostile})
        rows = [number(f"{hostile}/reward", 0.5, strength) for strength in (0.0, 1.0)]
        account = {"read": 9, "kept": 8, "dropped": {hostile: 1}, "cut": 0, "moved": 0}
        run.write("report.json", {"rows": {hostile: account}, "results": rows})
        run.metrics(1, {f"{hostile}/loss": 2.0})
        run.status("done")

    assert main(["report", "t", "--runs", str(tmp_path / "runs"), "--to", str(tmp_path / "page.html")]) == 0

    tags = Tags()
    tags.feed((tmp_path / "page.html").read_text())
    assert len(tags.found) > 20
    assert not {"script", "img"} & {tag for tag, _ in tags.found}
    assert not [name for _, names in tags.found for name in names if name.startswith("on")]
