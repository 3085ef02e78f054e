"""The page in a real Chromium: it draws without errors or requests, fits a phone, and is safe to open."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ctpo.cli.main import main
from tests.report.chromium import Browser, Page, browser, executable
from tests.report.made import SAMPLE, TRANSCRIPT, write_comparison, write_lines, write_run

MARKUP = '</script><img src=x onerror="window.hit=1"><b>bold</b> {{script}}'
HOSTILE = f"{MARKUP}\u2028\u202eright to left\u2069 🙂 e\u0301\x00"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if executable() is None:
        if os.environ.get("CTPO_REQUIRE_CHROMIUM"):
            pytest.fail("no chromium on the path, and CTPO_REQUIRE_CHROMIUM is set")
        pytest.skip("no chromium on the path: the report is not tested in a browser")
    with browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(scope="module")
def study(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of a comparison, opened on a desktop."""
    path = write_comparison(tmp_path_factory.mktemp("study") / "study")
    return opened(chromium, path)


@pytest.fixture(scope="module")
def hostile(chromium: Browser, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """The page of a run in which every text is hostile."""
    run = write_run(tmp_path_factory.mktemp("hostile") / "run", objective=HOSTILE, note=HOSTILE)
    call = {"program": HOSTILE, "status": HOSTILE, "output": HOSTILE}
    row = {
        **TRANSCRIPT,
        "prompt": HOSTILE,
        "answer": HOSTILE,
        "completion": f"a{HOSTILE}b{HOSTILE}c",
        "calls": [call],
    }
    write_lines(run / "transcripts" / "batch-0004.jsonl", [row])
    write_lines(
        run / "samples" / "batch-0004.jsonl", [{**SAMPLE, "prompt": HOSTILE, "tokens": [HOSTILE] * 6}]
    )
    return opened(chromium, run)


def opened(chromium: Browser, run: Path) -> Page:
    assert main(["report", str(run), "--title", f"about {HOSTILE}"]) == 0
    page = chromium.page()
    page.size(1280, 900)
    page.open(run / "report.html")
    return page


def count(page: Page, selector: str) -> int:
    return int(page.evaluate(f"document.querySelectorAll({selector!r}).length"))


def text(page: Page, selector: str) -> str:
    return str(page.evaluate(f"document.querySelector({selector!r}).textContent"))


def click(page: Page, selector: str) -> None:
    page.evaluate(f"document.querySelector({selector!r}).click()")


@pytest.mark.parametrize("which", ["study", "hostile"])
def test_it_is_drawn_without_an_error_or_a_request(which: str, request: pytest.FixtureRequest) -> None:
    page: Page = request.getfixturevalue(which)
    assert page.complaints == []
    assert [url.split("/")[-1] for url in page.requests] == ["report.html"]
    figures = count(page, "figure")
    assert figures > 15
    assert (
        page.evaluate(
            "[...document.querySelectorAll('figure')].filter((f) => f.querySelector('.curve')).length"
        )
        == figures
    )


def test_the_policy_blocks_requests_and_inline_scripts(hostile: Page) -> None:
    """The browser enforces the policy: a request and an inline script that the page itself tries are both blocked."""
    before = len(hostile.requests)
    tried = """new Promise((done) => {
        document.addEventListener('securitypolicyviolation', (event) => done(event.effectiveDirective));
        fetch('http://127.0.0.1:9/').catch(() => setTimeout(() => done('not stopped'), 500));
    })"""
    assert hostile.evaluate(tried) == "connect-src"
    hostile.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hit = 2'}))"
    )
    assert hostile.evaluate("window.hit") is None
    assert any("Content Security Policy" in line for line in hostile.complaints)
    hostile.complaints.clear()
    del hostile.requests[before:]


def test_hostile_text_is_shown_as_text(hostile: Page) -> None:
    assert hostile.evaluate("window.hit") is None
    assert count(hostile, "img, b b, main script, iframe") == 0
    shown = HOSTILE.replace("\x00", "\ufffd")
    assert text(hostile, "#viewer-heldout .prompt") in (HOSTILE, shown)
    assert text(hostile, "#viewer-heldout .completion") in (f"a{HOSTILE}b{HOSTILE}c", f"a{shown}b{shown}c")
    assert text(hostile, "#viewer-heldout .completion .call") in (HOSTILE, shown)
    assert text(hostile, "#viewer-samples .tokens .token") in (HOSTILE, shown)
    assert text(hostile, "#title").startswith("about </script><img")


def test_a_phone_needs_no_sideways_scrolling(study: Page, hostile: Page) -> None:
    for page in (study, hostile):
        page.size(360, 740, phone=True)
        wide = """[...document.querySelectorAll('main *')].filter((e) => e.getBoundingClientRect().right > 361
            && !e.closest('.scroll, svg')).map((e) => e.tagName + '.' + e.className).slice(0, 5)"""
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert page.evaluate(wide) == []
        page.size(1280, 900)


def test_dark_and_light_follow_the_system_and_the_switch(study: Page) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    study.prefer("light")
    light = study.evaluate(ground)
    study.prefer("dark")
    dark = study.evaluate(ground)
    assert (light, dark) == ("rgb(246, 247, 249)", "rgb(17, 20, 24)")
    click(study, "#theme")
    assert (text(study, "#theme"), study.evaluate(ground)) == ("theme: light", light)
    study.prefer("light")
    click(study, "#theme")
    assert (text(study, "#theme"), study.evaluate(ground)) == ("theme: dark", dark)
    click(study, "#theme")
    assert study.evaluate(ground) == light


def test_pointing_at_a_curve_shows_its_values(study: Page) -> None:
    study.point("#figure-heldout-pass-at-1 svg", across=0.97)
    shown = text(study, "#tip")
    assert shown.startswith("rollout batches: 4")
    assert "ctpo91 % (90.4 % to 91.6 %)" in shown  # .90, .91, .92: s.e. .0058
    assert "grpo71 %" in shown


def test_a_chart_can_be_read_with_the_keyboard(study: Page) -> None:
    study.evaluate("document.querySelector('#figure-reward svg').focus()")
    for _ in range(2):
        study.send(
            "Input.dispatchKeyEvent",
            type="keyDown",
            key="ArrowRight",
            code="ArrowRight",
            windowsVirtualKeyCode=39,
        )
    assert text(study, "#tip").startswith("rollout batches: 2")


def test_the_legend_hides_and_shows(study: Page) -> None:
    curves = "#figure-heldout-pass-at-1 .curve"
    assert (count(study, f"{curves}.line"), count(study, f"{curves}.seed")) == (2, 0)
    click(study, "#legend .entry")
    assert count(study, f"{curves}.line") == 1
    assert study.evaluate("document.querySelector('#legend .entry').getAttribute('aria-pressed')") == "false"
    click(study, "#legend .entry")
    click(study, "#seeds")
    assert (count(study, f"{curves}.line"), count(study, f"{curves}.seed")) == (2, 6)
    click(study, "#seeds")


def test_another_regime_shows_its_own_runs(study: Page) -> None:
    before = study.evaluate("document.querySelector('#figure-heldout-pass-at-1 .curve').getAttribute('d')")
    click(study, "#regimes button:nth-child(2)")
    assert (
        study.evaluate("document.querySelector('#figure-heldout-pass-at-1 .curve').getAttribute('d')")
        != before
    )
    click(study, "#regimes button:nth-child(1)")
    assert (
        study.evaluate("document.querySelector('#figure-heldout-pass-at-1 .curve').getAttribute('d')")
        == before
    )


def test_a_figure_steps_through_the_batches(study: Page) -> None:
    curve = "document.querySelector('#figure-clip-by-position .curve').getAttribute('d')"
    before = study.evaluate(curve)
    slide = """((slider) => { slider.value = 4; slider.dispatchEvent(new Event('input')); })(
        document.querySelector('#figure-clip-by-position input'))"""
    study.evaluate(slide)
    assert text(study, "#figure-clip-by-position output") == "batch 4"
    assert study.evaluate(curve) != before


def test_all_batches_are_a_button(study: Page) -> None:
    figure = "#figure-spread-by-position"
    curve = f"document.querySelector('{figure} .curve').getAttribute('d')"
    pressed = f"document.querySelector('{figure} .frames button').getAttribute('aria-pressed')"
    assert (text(study, f"{figure} .frames button"), study.evaluate(pressed)) == ("all batches", "true")
    before = study.evaluate(curve)
    click(study, f"{figure} .frames input")  # where the slider already stands
    assert (text(study, f"{figure} output"), study.evaluate(pressed)) == ("batch 1", "false")
    assert study.evaluate(curve) != before
    click(study, f"{figure} .frames button")
    assert (study.evaluate(curve), study.evaluate(pressed)) == (before, "true")


def test_seeds_are_dots_on_an_axis_that_says_where_it_starts(study: Page) -> None:
    figure = "#figure-seeds-final"
    assert count(study, f"{figure} .dots") == 2
    assert count(study, f"{figure} .dots path") == 6
    assert count(study, f"{figure} path.curve") == 0
    ticks = f"[...document.querySelectorAll('{figure} .axes text')].map((t) => t.textContent)"
    assert study.evaluate(ticks)[-4:] == ["0", "1", "2", "seed"]
    starts = """[...document.querySelectorAll('figure')].filter((figure) => figure.querySelector('.axis-label')
        .textContent.includes('does not start at 0')).map((figure) => figure.id)"""
    assert study.evaluate(starts) == ["figure-seeds-final", "figure-seeds-auc"]


def test_pointing_at_a_token_shows_its_ratios_and_what_clipped_it(study: Page) -> None:
    states = (
        "[...document.querySelectorAll('#viewer-samples .tokens .token')].map((t) => t.classList[1] ?? '')"
    )
    assert study.evaluate(states) == ["high", "high", "rarer", "fed", "low", "dual"]
    study.point("#viewer-samples .tokens .token:nth-child(2)")
    shown = text(study, "#tip")
    assert "position2" in shown
    assert "token ratio1.221 (log 0.2)" in shown
    assert "prefix ratio1.35 (log 0.3)" in shown
    assert "clipped at the upper limit" in shown
    study.point("#viewer-samples .tokens .token:nth-child(4)")
    assert "not trained on" in text(study, "#tip")


def test_what_is_missing_is_on_the_page(study: Page) -> None:
    assert "8 runs are left out: they tuned the settings" in text(study, "#missing")


def test_the_values_of_a_figure_open_as_a_table(study: Page) -> None:
    study.evaluate("document.querySelector('#figure-reward details').open = true")
    rows: Any = study.evaluate(
        """new Promise((done) => setTimeout(() => done(
            [...document.querySelectorAll('#figure-reward tbody tr')].map((row) => row.innerText)), 50))"""
    )
    assert len(rows) == 4
    assert rows[-1].split() == ["4", "0.91", "0.71"]
