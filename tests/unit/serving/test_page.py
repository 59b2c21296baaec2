"""The page: what it draws, asks and keeps, and in Chromium that a person can use it."""

from __future__ import annotations

import gc
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs alignlab[serve]")
pytest.importorskip("openai", reason="needs alignlab[serve]")
gradio = pytest.importorskip("gradio", minversion="6", reason="needs alignlab[ui]")

import httpx  # noqa: E402

from alignlab.errors import ControlError  # noqa: E402
from alignlab.models.sampling import Sampling  # noqa: E402
from alignlab.serving import page  # noqa: E402
from alignlab.serving.engine import Engine, Limits  # noqa: E402
from tests.conftest import backbone  # noqa: E402
from tests.contracts.controls import CASES, trained  # noqa: E402
from tests.unit.conftest import attached  # noqa: E402
from tests.unit.serving.conftest import KEY, held, serving  # noqa: E402

# Gradio leaves sockets and loops to the collector, which comes while these filters hold.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
]
MEET = next(case for case in CASES if case.form == "soft_prompt" and case.backbone == "llama")
STRENGTHS = partial(page._strengths, ())
PROMPT = "Tell a story about Tom and a kite."
LIMITS = Limits(new_tokens=40, prompt_tokens=None, rows=8, waiting=16)
CHROMIUM = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


def row(metric: str, strength: float, value: float, control: str = "dial") -> dict[str, Any]:
    """A number of a report with an interval of 0.1 to both sides."""
    given = {"strength": strength, "control": control, "suite": "toy", "metric": metric, "value": value}
    return {**given, "n": 4, "low": value - 0.1, "high": value + 0.1}


CURVE = [row(metric, strength, strength / 2) for strength in (0.0, 1.0, 2.0) for metric in ("words", "capability", "reward")]


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """What Gradio leaves is collected with the test that it belongs to."""
    yield
    gc.collect()


@pytest.fixture
def engine() -> Iterator[Engine]:
    """A RED policy and one with two classes."""
    policies = {"red": attached("red", backbone("llama")), "meet": trained(MEET, backbone("llama"))}
    made = Engine(policies, LIMITS)
    yield made
    made.close()


def test_reward_and_capability_are_drawn_first_with_the_present_point_on_the_line() -> None:
    drawn = page.drawn(CURVE, [0.5, 3.0])

    assert re.findall(r"<figcaption>(\w+)", drawn) == ["reward", "capability", "words"]
    reward = drawn.split("</figure>")[0]
    measured = re.findall(r'class="measured" cx="([\d.]+)" cy="([\d.]+)"', reward)
    (present,) = re.findall(r'circle class="present" cx="([\d.]+)" cy="([\d.]+)"', reward)  # nothing was measured at 3
    assert reward.count('line class="present"') == 2
    for place in (0, 1):
        halfway = (float(measured[0][place]) + float(measured[1][place])) / 2
        assert float(present[place]) == pytest.approx(halfway, abs=0.1)


def test_the_safe_range_is_shaded_from_end_to_end_and_each_adapter_has_its_own_curve_and_dials() -> None:
    drawn = page._curves(("a", "b"), {"a": CURVE, "b": CURVE[:3]}, {"a": held(0.0, 1.0), "b": None}, 0.5, 9.0, 1.5, 9.0)

    assert re.findall(r"<figcaption>(\w: \w+)", drawn)[::3] == ["a: reward", "b: reward"]
    first = drawn.split("</figure>")[0]
    ((left, wide),) = re.findall(r'class="safe" x="([\d.]+)" y="8" width="([\d.]+)"', first)
    zero, one, _ = (float(x) for x in re.findall(r'class="measured" cx="([\d.]+)"', first))
    assert [float(left), float(left) + float(wide)] == pytest.approx([zero, one], abs=0.2)
    marks = [float(x) for x in re.findall(r'line class="present" x1="([\d.]+)"', first)]
    assert marks == pytest.approx([(zero + one) / 2, one + (one - zero) / 2], abs=0.2)
    assert drawn.count('class="safe"') == 3  # of the first adapter's metrics
    assert re.findall(r"<figcaption>(\w+)", page.drawn(CURVE, [], replace(held(0, 1), metric="fluency/words")))[2] == "words"
    assert page._strengths(("a", "b"), 0.5, 9.0, 1.5, 9.0) == [({"a": 0.5, "b": 9.0}, None), ({"a": 1.5, "b": 9.0}, None)]


def test_a_dial_ends_with_the_safe_range_unless_the_server_only_warns() -> None:
    free, ended = (page._dial("Strength", 1.5, CURVE, held(0.0, 1.0), ends=ends) for ends in (False, True))

    assert [(dial.minimum, dial.maximum, dial.value) for dial in (free, ended)] == [(0, 2, 1.5), (0, 1, 1)]
    assert free.info == ended.info == "Seen to hold from 0 to 1."
    alone = page._dial("Strength", 1.5, CURVE, held(0.0, 0.0), ends=True)
    assert (alone.info, alone.value, alone.interactive) == ("Seen to hold at 0 alone.", 0, False)


def test_classes_are_drawn_by_name_and_without_a_line() -> None:
    drawn = page.drawn([row("reward", 1.0, 0.3, "good"), row("reward", 1.0, 0.1, "<bad>")], [])

    assert ">good<" in drawn
    assert "&lt;bad&gt;" in drawn
    assert "polyline" not in drawn


def test_weights_are_shares_and_all_at_0_are_refused() -> None:
    assert page._mixtures(["good", "bad"], 0.5, 1.5)[0] == (None, {"good": 0.25, "bad": 0.75})
    with pytest.raises(ControlError, match="every class is at 0"):
        page._mixtures(["good", "bad"], 0, 0)


def test_strengths_side_by_side_grow_to_what_the_policy_answers(engine: Engine) -> None:
    *before, last = page._written(engine, "red", STRENGTHS, PROMPT, 12, 0, 0, 0.0, 1.5)

    expected = attached("red", backbone("llama")).respond(
        [PROMPT] * 2, strength=[0.0, 1.5], sampling=Sampling(12, 0.0, 1.0), seed=0
    )
    assert last == expected
    assert before
    assert all(text.startswith(part) for texts in before for part, text in zip(texts, last, strict=True))


def test_breaking_off_frees_the_rows_and_a_mistake_is_said(engine: Engine) -> None:
    writing = page._written(engine, "red", STRENGTHS, PROMPT, 40, 0, 0, 0.0, 1.5)
    next(writing)

    writing.close()

    assert engine.load == {"running": 0, "waiting": 0}
    with pytest.raises(gradio.Error, match="has room for"):
        next(page._written(engine, "red", STRENGTHS, PROMPT * 30, 40, 0, 0, 0.0))


def test_kept_samples_say_how_they_were_made() -> None:
    kept = page._keep("red", STRENGTHS, 2, [["", "", "", "", "", ""]], PROMPT, 12, 0.5, 3, 0.0, 1.5, "one", "")

    assert kept == [["red", PROMPT, "strength 0", 0.5, 3, "one"]]


def test_the_page_asks_for_the_key_where_the_server_has_one(engine: Engine) -> None:
    with serving(engine, ui={}) as address:
        locked = httpx.get(f"{address}/ui/config")
        refused = httpx.post(f"{address}/ui/login", data={"username": page.USER, "password": "another"})
        with httpx.Client() as browser:
            browser.post(f"{address}/ui/login", data={"username": page.USER, "password": KEY})
            opened = browser.get(f"{address}/ui/config")
        models = httpx.get(f"{address}/v1/models")

    assert (locked.status_code, refused.status_code, opened.status_code, models.status_code) == (401, 400, 200, 401)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)])
def test_in_chromium_a_person_writes_keeps_and_downloads(engine: Engine, tmp_path: Path, scheme: str, width: int) -> None:
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs alignlab[serve_test]")
    if not shutil.which("chromium") or not shutil.which("chromedriver"):
        pytest.skip("needs Chromium and its driver")
    options = webdriver.ChromeOptions()
    for word in (*CHROMIUM, f"--user-data-dir={tmp_path}/profile", f"--window-size={width},900"):
        options.add_argument(word)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path / "downloads")})
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))

    def found(xpath: str) -> Any:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            shown = [each for each in driver.find_elements("xpath", xpath) if each.is_displayed()]
            if shown:
                return shown
            time.sleep(0.1)
        raise AssertionError(f"{xpath} is not on the page")

    def answers() -> list[list[str]]:
        boxes = found("//label[contains(., 'Answer')]//textarea")
        return [box.get_property("value").split() for box in boxes]  # a text box has line feeds of its own

    try:
        with serving(engine, key=None, ui={"red": {"red": CURVE}}) as address:
            # headless Chromium has no window narrower than 500 pixels
            driver.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500},
            )
            driver.get(f"{address}/ui/?__theme={scheme}")
            found("//label[contains(., 'Prompt')]//textarea")[0].send_keys(PROMPT)
            found("//button[normalize-space()='Write']")[0].click()
            policy, greedy = attached("red", backbone("llama")), Sampling(40, 0.0, 1.0)
            texts = policy.respond([PROMPT] * 3, strength=[0.0, 1.0, 1.5], sampling=greedy, seed=0)
            expected = [text.split() for text in texts]
            until = time.monotonic() + 30
            while answers() != expected and time.monotonic() < until:
                time.sleep(0.1)
            assert answers() == expected
            found("//button[normalize-space()='Keep']")[0].click()
            found("//*[@role='gridcell'][contains(., 'strength 1.5')]")
            found("//button[normalize-space()='Download as CSV']")[0].click()
            file = tmp_path / "downloads" / "comparison.csv"
            until = time.monotonic() + 30
            while not file.exists() and time.monotonic() < until:
                time.sleep(0.1)
            assert file.read_text(encoding="utf-8").count(PROMPT) == 3
            wide = driver.execute_script("return document.documentElement.scrollWidth")
            driver.save_screenshot(str(tmp_path / f"{scheme}-{width}.png"))
            assert wide <= width
            asked = driver.execute_script("return performance.getEntriesByType('resource').map(each => each.name)")
            assert [name for name in asked if not name.startswith((address, "data:", "blob:"))] == []
    finally:
        driver.quit()
