"""Every block of code in README, docs/ and recipes/ runs, or says why it does not."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
import shlex
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from handbook.blocks import Block, blocks, commands
from handbook.pages import ROOT

from ctpo.cli.main import build_parser
from ctpo.errors import UserError
from tests.documents.given import names

LANGUAGES = {"", "python", "yaml", "toml", "text", "diff"}
"""A block of another language would be checked by nothing."""
ELSEWHERE = {"README.md": "CTPOTrainer("}
"""Blocks that another test runs with a smaller model: the page, and what the block holds."""


def by_page() -> dict[str, list[Block]]:
    """The Python blocks of each page that run here."""
    pages: dict[str, list[Block]] = {}
    for block in blocks("python"):
        if not block.why_not_run and ELSEWHERE.get(str(block.page), "\0") not in block.code:
            pages.setdefault(str(block.page), []).append(block)
    return pages


@pytest.mark.parametrize("page", by_page())
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_python_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page run one after the other, in one namespace."""
    monkeypatch.chdir(tmp_path)
    scope = {**names(), "__name__": page}
    for block in by_page()[page]:
        code = compile("\n" * block.line + block.code, str(block.page), "exec")
        with contextlib.redirect_stdout(io.StringIO()):
            exec(code, scope)


def test_every_language_is_checked() -> None:
    unknown = {str(block): block.language for block in blocks() if block.language not in LANGUAGES}
    assert not unknown


def test_reasons_are_given_for_blocks_that_run_nowhere() -> None:
    for block in blocks():
        if block.why_not_run:
            assert block.language == "python", f"{block}: only Python blocks run"
            assert block.why_not_run.startswith("needs "), f"{block}: say what is missing"


@pytest.mark.parametrize("block", list(blocks("yaml")), ids=str)
def test_yaml_has_keys_that_exist(block: Block) -> None:
    from ctpo.training.config.settings import check

    keys = yaml.safe_load(block.code)
    keys.pop("dataset", None)  # the reader's own file
    check(keys)


@pytest.mark.parametrize("block", list(blocks("toml")), ids=str)
def test_toml_can_be_read(block: Block) -> None:
    assert tomllib.loads(block.code)


LINES = sorted({line for block in blocks("") for line in commands(block.code)})
CTPO = [
    line
    for line in LINES
    if re.match(r"(CTPO_\w+=\S+ |torchrun .* -m |accelerate launch .* -m )?ctpo( |$)", line)
]


@pytest.mark.parametrize("line", CTPO)
def test_a_command_takes_these_words(line: str) -> None:
    """As the shell would split the line, without running it: unknown options and keys are found."""
    words = shlex.split(line)
    words = words[words.index("ctpo") + 1 :]
    if words[:1] == ["COMMAND"] or "--help" in words or "--version" in words:
        return
    args = build_parser().parse_args(words)
    if words[0] == "train" and args.resume is None:
        known_keys([word for word in args.words if "=" in word])


def known_keys(words: list[str]) -> None:
    """Refuse a key that no recipe has."""
    from ctpo.training.config.critic import CRITIC
    from ctpo.training.config.recipe import Recipe
    from ctpo.training.config.sources import trainer_fields

    known = {*trainer_fields(), *Recipe.__dataclass_fields__, "engine"}
    for word in words:
        key, _, inner = word.partition("=")[0].partition(".")
        assert key in known, f"{word}: no recipe has the key {key}"
        if key == "critic" and inner:
            assert inner in CRITIC, f"{word}: no critic has the knob {inner}"


def test_other_commands_name_what_exists() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    extras = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])
    for line in LINES:
        words = line.split()
        if words[0] == "make":
            assert {word for word in words[1:] if re.fullmatch(r"[a-z-]+", word)} <= targets, line
        if words[0] == "python" and words[1].startswith(("examples/", "benchmarks/")):
            assert (ROOT / words[1]).is_file(), line
        if words[:2] == ["pip", "install"]:
            for found in re.findall(r"ctpo\[([\w,-]+)\]", line):
                assert set(found.split(",")) <= extras, line
        for word in words:
            if word.startswith("recipes/") and "…" not in word:
                assert (ROOT / re.sub(r"(\.py):\w+$", r"\1", word)).exists(), line


OUTPUTS = [block for block in blocks("text") if block.output_of]
SHORT = {"examples/ppo_critic.py": ["--rollout-batches", "1", "--responses", "128"]}
"""Programs whose output is that of a longer run: the arguments with which they run here."""
EXACT = ("cities", "guess", "read_a_run")


@pytest.mark.parametrize("block", OUTPUTS, ids=lambda block: block.output_of.split()[0])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_program_shows_what_the_page_says(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Each line has the same words; figures are the same where arithmetic does not depend on the machine."""
    program, *words = shlex.split(block.output_of)
    if "runs/first" in words:
        run = tmp_path / "runs" / "first"
        run.mkdir(parents=True)
        shutil.copy(Path(__file__).with_name("first_run.jsonl"), run / "metrics.jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [program, *SHORT.get(program, words)])
    runpy.run_path(str(ROOT / program), run_name="__main__")
    printed = [line.rstrip() for line in capsys.readouterr().out.strip().splitlines()]
    shown = block.code.strip().splitlines()
    if Path(program).stem in EXACT:
        assert printed == [line.rstrip() for line in shown]
    else:
        assert len(printed) == len(shown) or program in SHORT
        for ours, theirs in zip(printed, shown, strict=False):
            assert _words(ours) == _words(theirs)
    if Path(program).stem == "loop":  # it learns in one rollout batch
        after = float(printed[-1].split("pass@1 ")[1].split()[0])
        assert after > 0.2 + 5 * 0.035  # .20 before; the standard error of 128 problems is .035


def _words(line: str) -> list[str]:
    """The words of a line without its figures and without what a model wrote."""
    return re.findall(
        r"[a-z_@]+", re.sub(r"response: .*? reward", "response: reward", line).replace("1e-", "")
    )


def test_every_program_has_a_page() -> None:
    """A program in examples/ that no tutorial shows would be missed by everybody."""
    pages = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("docs/tutorials/*.md"))
    for path in ROOT.glob("examples/*.py"):
        assert f"<!-- program: examples/{path.name} -->" in pages, path.name


def test_the_checks_find_what_is_wrong() -> None:
    """An unknown option, an unknown key and an unknown knob."""
    for words in (["report", "--outputt", "x"], ["calibrate", "RUN", "--shares", "1"]):
        with pytest.raises(UserError):
            build_parser().parse_args(words)
    for word in ("learnin_rate=1", "critic.epoch=1"):
        with pytest.raises(AssertionError):
            known_keys([word])
