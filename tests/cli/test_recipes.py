"""`ctpo recipes` lists what there is, and copies it without writing over anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ctpo.cli import recipes
from ctpo.cli.main import main

ROOT = Path(__file__).parents[2]


def test_it_lists_every_folder_and_every_program(capsys: Any) -> None:
    assert main(["recipes"]) == 0
    printed = capsys.readouterr().out
    for path in (*ROOT.glob("recipes/*/train.yaml"), *ROOT.glob("examples/*.py")):
        shown = path.parent if path.suffix == ".yaml" else path
        assert f"{shown.relative_to(ROOT).as_posix()} " in printed


def test_a_copy_is_the_file_and_is_not_written_over(tmp_path: Path, capsys: Any) -> None:
    words = ["recipes", "smollm2-tool", "--copy", str(tmp_path), "loop"]
    assert main(words) == 0
    for name in ("recipes/smollm2-tool/train.yaml", "examples/loop.py"):
        assert (tmp_path / name).read_bytes() == (ROOT / name).read_bytes()
    (tmp_path / "examples" / "loop.py").write_text("mine")
    assert main(words) == 2
    assert "exists already" in capsys.readouterr().err
    assert (tmp_path / "examples" / "loop.py").read_text() == "mine"


def test_an_unknown_name_is_refused(capsys: Any) -> None:
    assert main(["recipes", "smollm3"]) == 2
    assert "recipe 'smollm3' is unknown; use one of " in capsys.readouterr().err


def test_an_installed_package_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("recipes", "examples"):
        (tmp_path / "share" / "ctpo" / name).mkdir(parents=True)
    monkeypatch.setattr(recipes, "__file__", str(tmp_path / "lib" / "x" / "ctpo" / "cli" / "recipes.py"))
    monkeypatch.setattr(recipes.sysconfig, "get_path", lambda _: str(tmp_path))
    assert recipes.shipped() == tmp_path / "share" / "ctpo"
