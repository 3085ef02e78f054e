"""The generated pages are complete, and the written ones name everything that they promise to name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from handbook import api, messages, presets
from handbook.pages import ROOT, made, taken

from ctpo.objectives import preset_defaults, preset_names
from ctpo.objectives.stats import SUMS, finalise_numbers


def text(place: str) -> str:
    """A page without the marks of quotes and line ends, so that a sentence is found wherever it is wrapped."""
    lines = (ROOT / "docs" / place).read_text(encoding="utf-8").splitlines()
    return " ".join(" ".join(line.removeprefix(">").strip() for line in lines).split())


def parts(message: str) -> list[str]:
    """The first words of each part of a message that is long enough to tell it from others."""
    between = [part.strip(" ,:;.()'\"") for part in re.split(r"…|\{\w+\}", message)]
    return [part[:30] for part in between if len(part) > 15] or [max(between, key=len)]


def missing(page: str, found: list[messages.Message]) -> list[str]:
    """The warnings of which a page holds no part."""
    return [
        f"{each.path}:{each.line} {each.text}"
        for each in found
        if each.text and not any(part in page for part in parts(each.text))
    ]


def test_every_warning_has_its_remedy() -> None:
    """A new `warnings.warn` needs an entry in docs/how-to/troubleshooting.md."""
    page = text("how-to/troubleshooting.md")
    assert len(messages.warnings()) > 20
    assert not missing(page, messages.warnings())


def test_a_warning_without_an_entry_is_found() -> None:
    odd = messages.Message("x.py", 1, "warning", "a warning that …{name} nobody has written about")
    assert missing(text("how-to/troubleshooting.md"), [odd])


def test_messages_are_read_from_every_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain, formatted and joined texts, and what warns by another function."""
    source = tmp_path / "odd.py"
    source.write_text(
        "import warnings\n"
        "warnings.warn_explicit('this is a plain warning', RuntimeWarning, 'a', 1)\n"
        "raise ValueError(f'{x} is bad; use {x + 1!r} ' 'instead')\n"
    )
    monkeypatch.setattr(messages, "SOURCE", tmp_path)
    assert {(each.kind, each.text) for each in messages._of_file(source)} == {
        ("warning", "this is a plain warning"),
        ("ValueError", "{x} is bad; use … instead"),
    }


def test_every_knob_has_a_unit() -> None:
    knobs = {knob for name in preset_names() for knob in preset_defaults(name)}
    assert knobs == presets.UNITS.keys()


def test_every_preset_has_a_section() -> None:
    page = presets.page()
    for name in preset_names():
        assert f"\n## `{name}` {{ #{name} }}" in page
        assert f'preset("{name}", ' in page


def test_every_statistic_is_in_the_glossary() -> None:
    from ctpo.report.figures.by_batch import _METRICS

    page = text("reference/statistics.md")
    named = {*finalise_numbers([1.0] * len(SUMS)), *(metric.key for metric in _METRICS)}
    for page_of_keys in ("how-to/critic.md", "how-to/rollout_correction.md", "reference/diagnostics.md"):
        named |= set(re.findall(r"`((?:critic|engine|correction|heldout)_[a-z0-9_@]+)`", text(page_of_keys)))
    lost = {
        name for name in named if f"`{name}`" not in page and not name.startswith("correction_rejected_by")
    }
    assert not lost


def test_every_module_that_offers_names_has_a_page() -> None:
    shown = {module for modules in api.PAGES.values() for module in modules}
    assert set(api.modules_with_all()) <= shown
    for module in shown:
        assert api.public_names(module) or module.startswith("ctpo.adapters."), module


def test_every_page_is_in_the_navigation() -> None:
    """mkdocs finds this too, but only when the site is built."""
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    named = set(re.findall(r"[\w/-]+\.md", config.partition("\nnav:")[2]))
    there = {path.relative_to(ROOT / "docs").as_posix() for path in ROOT.glob("docs/**/*.md")}
    also = {*made(), *(place for place in taken() if not place.startswith("recipes/"))}
    assert named == there | also
