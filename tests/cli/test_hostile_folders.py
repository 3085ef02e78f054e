"""A model's folder and an evaluation's folder from somebody else: one line, no code, nothing waited for."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ctpo.cli.main import main
from ctpo.tasks.arithmetic import model_path

Damage = Callable[[Path], Any]
EVAL = "eval embedded --limit 2 --max-tokens 8 --show 0 --output out"


def updated(name: str, **entries: Any) -> Damage:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))

    return change


def refused(capsys: pytest.CaptureFixture[str], words: str, part: str) -> None:
    capsys.readouterr()
    code = main(words.split())
    line = capsys.readouterr().err
    assert (code, line.count("\n")) == (2, 1), line
    assert line[:-1].isprintable(), repr(line)
    assert part in line, line


NO_CHARACTERS = {"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAA"}}
NO_WORDS = {"model": {"type": "WordLevel", "vocab": {}, "unk_token": "x"}}
MODELS: list[tuple[str, Damage, str]] = [
    ("attention from the hub", updated("config.json", attn_implementation="evil/kernel"), "is code from the hub"),
    ("the same, nested", updated("config.json", a=[{"_attn_implementation": {"": "e/k"}}]), "is code from the hub"),
    ("labels", updated("config.json", num_labels=10**9), "num_labels is 1000000000"),
    ("layers", updated("config.json", num_hidden_layers=-1), "num_hidden_layers is -1"),
    ("context", updated("config.json", max_position_embeddings=10**30), "max_position_embeddings is 1000"),
    ("ends", updated("generation_config.json", eos_token_id=[[1]]), "eos_token_id is [[1]]"),
    ("length of text", updated("tokenizer_config.json", model_max_length="x"), "cannot be loaded"),
    ("panic in Rust", updated("tokenizer.json", **NO_CHARACTERS), "cannot be loaded"),
    ("no words", updated("tokenizer.json", **NO_WORDS), "cannot be loaded"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "part"), [pytest.param(*case[1:], id=case[0]) for case in MODELS])
def test_model(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: Damage,
    part: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(model_path(), "m")
    damage(Path("m"))
    refused(capsys, "eval m --limit 2 --max-tokens 8", part)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("evaluated") / "out"
    assert main([*EVAL.split()[:-1], str(path)]) == 0
    return path


def replaced(name: str, make: Damage) -> Damage:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return change


def link(path: Path) -> None:
    path.symlink_to("../made")


FOLDERS: list[tuple[str, Damage, str]] = [
    ("lock that waits", replaced(".lock", os.mkfifo), "out/.lock is not a regular file"),
    ("lock that leads out", replaced(".lock", link), "out/.lock is a link"),
    ("folder of figures", replaced("eval.json", Path.mkdir), "out/eval.json cannot be written"),
    ("folder of responses", replaced("transcripts.jsonl", Path.mkdir), "out/transcripts.jsonl cannot be written"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "part"), [pytest.param(*case[1:], id=case[0]) for case in FOLDERS])
def test_evaluation(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    evaluated: Path,
    damage: Damage,
    part: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(evaluated, "out")
    damage(Path("out"))
    refused(capsys, EVAL, part)
    assert not Path("made").exists()


@pytest.mark.parametrize("entries", [{"tokens": 10**400}, {"tokens": -1}, {"sample": True}])
def test_a_response_with_an_odd_number_is_sampled_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluated: Path, entries: dict[str, Any]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(evaluated, "out")
    path = Path("out", "transcripts.jsonl")
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(first), **entries}), *rest, ""]))
    assert main(EVAL.split()) == 0
    assert path.read_bytes() == (evaluated / "transcripts.jsonl").read_bytes()


def test_a_module_beside_the_task_file_is_part_of_its_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("sub").mkdir()
    helper = Path("sub", "helper_of_this_test.py")
    Path("sub", "t.py").write_text(
        "from ctpo.tasks import Problem, Task\nfrom helper_of_this_test import right\n"
        "def p(split, count, seed): return [Problem(prompt='1+1=', answer='2', id='0')]\n"
        "task = Task(name='x', problems=p, check=lambda c, a: right())\n"
    )
    for value, accuracy in ((False, 0.0), (True, 1.0)):
        helper.write_text(f"right = lambda: {value}  # {'x' * value}\n")
        for name in [each for each in sys.modules if each.startswith(("helper_of", "ctpo_own_task_"))]:
            del sys.modules[name]  # as in another process
        os.utime("sub/t.py", (0, value))
        assert main(EVAL.replace("embedded", "embedded --task sub/t.py").split()) == 0
        assert json.loads(Path("out", "eval.json").read_text())["results"]["sub/t.py"]["pass@1"] == accuracy
    assert "the check changed, so 1 responses are judged anew" in capsys.readouterr().out
