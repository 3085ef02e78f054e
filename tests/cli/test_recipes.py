"""`ctpo recipes` lists what there is, and copies it without writing over anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ctpo.cli import recipes
from ctpo.cli.main import main
from ctpo.errors import UserError

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
    """By pip's record, so that another environment may see the package too, or a folder of the user's may hold it."""
    packages, share = tmp_path / "lib" / "python3" / "site-packages", tmp_path / "share" / "ctpo"
    for folder in (packages / "ctpo-0.1.dist-info", share / "recipes", share / "examples"):
        folder.mkdir(parents=True)
    (packages / "ctpo-0.1.dist-info" / "METADATA").write_text("Name: ctpo\nVersion: 0.1\n")
    (packages / "ctpo-0.1.dist-info" / "RECORD").write_text(
        "ctpo/__init__.py,,\n../../../share/ctpo/recipes/cost.py,,\n../../../share/ctpo/examples/loop.py,,\n"
    )
    monkeypatch.setattr(recipes, "__file__", str(packages / "ctpo" / "cli" / "recipes.py"))
    monkeypatch.syspath_prepend(packages)
    assert recipes.shipped() == share.resolve()
    (share / "recipes").rmdir()
    with pytest.raises(UserError, match="holds no recipes"):
        recipes.shipped()
