"""The page as a file: nothing of the data can become markup, and the policy allows only its own script and style."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ctpo.cli.main import main
from ctpo.report.collection import collect
from ctpo.report.page import embedded_json, figures, page
from ctpo.report.responses import all_responses, responses
from tests.report.made import SAMPLE, TRANSCRIPT, heldout, write_comparison, write_lines, write_run

STYLE = Path(__file__).parents[2] / "src" / "ctpo" / "report" / "web" / "page.css"


def test_embedded_json_is_ascii_without_markup_and_comes_back_whole() -> None:
    hostile = "</script><!--<script>&\u2028\u2029\ud800🙂\u202e"
    embedded = embedded_json({"a": hostile})
    assert embedded.isascii()
    assert not set("<>&") & set(embedded)
    assert json.loads(embedded) == {"a": hostile}


def test_the_policy_allows_what_the_page_holds_and_nothing_else(tmp_path: Path) -> None:
    collection = collect([write_run(tmp_path / "run")])
    html = page(collection, figures(collection), "a <b> title")
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)
    assert policy is not None
    rules = dict(rule.strip().split(" ", 1) for rule in policy[1].split(";"))
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        body = re.search(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        assert body is not None
        digest = base64.b64encode(hashlib.sha256(body[1].encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert rules["default-src"] == "'none'"
    assert "<title>a &lt;b&gt; title</title>" in html
    assert html.count("</script>") == 2
    assert not re.search(
        r"(src|href)=|url\((?!#)|https?://(?!www\.w3\.org/2000/svg)", html.replace('href="#main"', "")
    )


def test_the_page_does_not_say_where_the_runs_lie(tmp_path: Path) -> None:
    collection = collect([write_comparison(tmp_path / "study")])
    assert str(tmp_path) not in page(collection, figures(collection), "t").replace("output_dir", "")


def test_texts_stay_within_their_budget_and_say_what_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    long = {**TRANSCRIPT, "completion": "x" * 30_000}
    for batch in range(5):
        write_lines(run / "transcripts" / f"batch-{batch:04d}.jsonl", [long] * 20)
    shown = responses(collect([run]).runs[0], runs=10).heldout
    assert [batch.batch for batch in shown] == [0, 2, 4]  # the last, the first, the middle
    assert len(shown[-1].rows) == 3
    assert shown[-1].left_out == 17
    assert len(embedded_json([batch.rows for batch in shown])) < 400_000


def test_of_very_many_runs_the_first_seeds_of_each_group_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write_run(tmp_path / f"{o}{s}", objective=o, seed=s) for o in ("ctpo", "grpo") for s in range(3)]
    monkeypatch.setattr("ctpo.report.responses.BUDGET", 3 * 24_000)
    collection = collect(paths)
    assert [bool(shown.heldout) for shown in all_responses(collection)] == [
        True,
        True,
        False,
        True,
        False,
        False,
    ]
    assert "responses of 3 of 6 runs" in collection.notes[0]


def test_a_damaged_response_does_not_cost_the_others(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_lines(run / "samples" / "batch-0004.jsonl", [{**SAMPLE, "clip": [1]}, SAMPLE, {"tokens": None}])
    read = collect([run]).runs[0]
    assert len(responses(read, runs=1).samples[0].rows) == 1
    assert read.notes == ["samples/batch-0004.jsonl: 2 damaged rows are left out"]


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_contrast(theme: int) -> None:
    """WCAG 2: 3:1 for curves, 4.5:1 for text, on cards and on the page."""
    pairs = re.findall(r"--([\w-]+): light-dark\((#\w+), (#\w+)\)", STYLE.read_text(encoding="utf-8"))
    colours = {name: (light, dark)[theme] for name, light, dark in pairs}
    assert sum(name.startswith("series-") for name in colours) == 8
    for name, colour in colours.items():
        least = (
            3.0
            if name.startswith("series-")
            else 4.5
            if name in ("ink", "soft", "accent", "wrong", "right")
            else None
        )
        for ground in ("card", "page") if least else ():
            one, other = sorted((luminance(colour), luminance(colours[ground])), reverse=True)
            assert (one + 0.05) / (other + 0.05) >= least, f"{name} on {ground}"


SIGHT = {
    "all": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}  # fmt: skip
"""Linear RGB as these readers see it: Machado, Oliveira and Fernandes (2009), full severity."""
LMS = [
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
]
OKLAB = [
    [0.2104542553, 0.793617785, -0.0040720468],
    [1.9779984951, -2.428592205, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.808675766],
]


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("sight", SIGHT)
def test_curves_stay_apart_for_colour_blind_readers(sight: str, theme: int) -> None:
    """Every two of the eight colours differ by .09 in Oklab, about four times what can just be seen."""
    pairs = re.findall(r"--series-\d: light-dark\((#\w+), (#\w+)\)", STYLE.read_text(encoding="utf-8"))
    srgb = np.array([[int(pair[theme][i : i + 2], 16) / 255 for i in (1, 3, 5)] for pair in pairs])
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(SIGHT[sight]).T, 0, 1)
    lab = np.cbrt(seen @ np.array(LMS).T) @ np.array(OKLAB).T
    apart = np.linalg.norm(lab[:, None] - lab[None], axis=-1)[np.triu_indices(8, 1)]
    assert len(pairs) == 8
    assert apart.min() > 0.09


def test_the_command_writes_the_page_and_every_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path / "run")
    write_lines(run / "metrics.jsonl", [{**heldout(batch, 0.1 * batch), "reward": 0.5} for batch in range(3)])
    (run / "environment.json").unlink()
    assert main(["report", str(run), "--plots", str(tmp_path / "plots")]) == 0
    printed = capsys.readouterr().out
    assert f"{run / 'report.html'}" in printed
    assert "environment.json is missing" in printed
    names = {figure.id for figure in figures(collect([run]))}
    written = list((tmp_path / "plots").iterdir())
    assert {path.stem.split("--")[0] for path in written} == names
    for path in written:
        if path.suffix == ".svg":
            assert len(list(ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}path"))) > 5
        else:
            with Image.open(path) as image:
                assert len(image.convert("RGB").getcolors(1 << 20) or []) > 20


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run")
    blocked = tmp_path / "file"
    blocked.write_text("")
    for words, part in (
        ([str(tmp_path / "nowhere")], "nothing to report"),
        ([str(run), "--output", str(blocked / "x.html")], "--output"),
        ([str(run), "--plots", str(blocked)], "--plots"),
    ):
        assert main(["report", *words]) == 2
        printed = capsys.readouterr().err
        assert printed.count("\n") == 1
        assert part in printed
