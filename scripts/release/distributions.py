"""`make dist`: the source archive and the wheels into dist/, built from the archive and checked.

There are three wheels: without the C pass for every system, and with it for Linux on x86-64 and on aarch64.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
DIST: Final = ROOT / "dist"
KINDS: Final = ("pure", "x86_64", "aarch64")
"""The wheels, by the names that setup.py knows."""
NEWEST_SYSTEM: Final = "manylinux_2_17"
"""The newest system whose symbols a library may ask for, as the wheels' names promise."""


def main() -> int:
    """Build everything and check it. Returns the exit code."""
    shutil.rmtree(DIST, ignore_errors=True)
    _python("-m", "build", "--no-isolation", "--sdist", "--outdir", str(DIST), str(ROOT))
    (archive,) = DIST.glob("*.tar.gz")
    for kind in KINDS:
        _wheel(archive, kind)
    wheels = sorted(DIST.glob("*.whl"))
    wrong = [line for wheel in wheels for line in problems(wheel)]
    for path in (archive, *wheels):
        print(f"{path.stat().st_size / 1024:7.0f} KB  {path.relative_to(ROOT)}")
    _python("-m", "twine", "check", "--strict", *map(str, (archive, *wheels)))
    for line in wrong:
        print(line, file=sys.stderr)
    return int(bool(wrong))


def problems(wheel: Path) -> list[str]:
    """What is wrong with a wheel: a library missing or too many, or one that not every machine it names can load."""
    kind = "pure" if wheel.stem.endswith("-any") else wheel.stem.rpartition("manylinux2014_")[2]
    wanted = {"pure": 0, "x86_64": 3, "aarch64": 1}[kind]
    with zipfile.ZipFile(wheel) as file:
        libraries = [name for name in file.namelist() if name.endswith(".so")]
    wrong = (
        [] if len(libraries) == wanted else [f"{wheel.name}: holds {libraries} instead of {wanted} libraries"]
    )
    if libraries:
        asked = _python("-m", "auditwheel", "show", str(wheel))
        if f'"{NEWEST_SYSTEM}_{kind}"' not in asked:
            wrong.append(f"{wheel.name}: auditwheel does not find it fit for {NEWEST_SYSTEM}: {asked}")
    return wrong


def _wheel(archive: Path, kind: str) -> None:
    """Build one wheel in a copy of the archive, so that nothing else of this tree gets into it."""
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")
        (source,) = Path(folder).iterdir()
        words = ("-m", "build", "--no-isolation", "--wheel", "--outdir", str(DIST), str(source))
        _python(*words, CTPO_WHEEL=kind)


def _python(*words: str, **environment: str) -> str:
    """Run this Python with some words; its output. What fails is shown and ends the build."""
    done = subprocess.run(
        [sys.executable, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        check=False,
    )
    if done.returncode:
        print(done.stdout, file=sys.stderr)
        sys.exit(f"{' '.join(words)}: failed with the exit code {done.returncode}")
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
