"""Where the compiled C pass comes from: the package, the user's cache, or a temporary folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctpo.objectives import preset
from ctpo.objectives.cpu import compile_flags, library
from ctpo.objectives.cpu.compile_flags import SOURCES, cpu_flags, fingerprint

from .batches import make, run

pytestmark = pytest.mark.skipif(not library.available(), reason="needs a C compiler")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache, no library in the package, and a compiler that does not optimise, which is faster."""
    folder = tmp_path / "cache"
    monkeypatch.setattr(compile_flags, "COMPILE", ("-O0", "-fPIC", "-pthread"))
    monkeypatch.setenv("CTPO_CACHE_DIR", str(folder))
    monkeypatch.setattr(library, "_from_package", lambda kind, wanted: None)
    library.library.cache_clear()
    library.available.cache_clear()
    yield folder
    library.library.cache_clear()
    library.available.cache_clear()


def load() -> object:
    library.library.cache_clear()
    return library.library()


def test_compiled_once_into_a_private_folder(cache: Path) -> None:
    load()
    (built,) = cache.iterdir()
    assert built.suffix == ".so"
    assert cache.stat().st_mode & 0o777 == 0o700
    assert built.stat().st_mode & 0o077 == 0
    before = built.stat().st_mtime_ns
    load()
    assert [(path, path.stat().st_mtime_ns) for path in cache.iterdir()] == [(built, before)]
    run(preset("ctpo", backend="native"), make())


def test_nothing_is_loaded_that_others_can_write_to(cache: Path, tmp_path: Path) -> None:
    load()
    (built,) = cache.iterdir()
    assert library._only_ours(cache)
    assert library._only_ours(built)
    for path in (built, cache):
        mode = path.stat().st_mode
        path.chmod(0o777)
        assert not library._only_ours(path)
        load()  # from a temporary folder
        path.chmod(mode & 0o777)
    link = tmp_path / "link"
    link.symlink_to(cache)
    assert not library._only_ours(link)
    tmp_path.chmod(0o777)  # anyone may exchange the folder
    assert not library._only_ours(cache)
    tmp_path.chmod(0o700)


def test_a_library_of_other_sources_is_not_loaded(cache: Path) -> None:
    load()
    (built,) = cache.iterdir()
    assert library._load(built, "another fingerprint") is None
    built.unlink()  # the old one stays mapped
    built.write_bytes(b"not a library")
    load()  # from a temporary folder


def test_the_fingerprint_follows_sources_and_flags(tmp_path: Path) -> None:
    here = Path(library.__file__).parent
    for name in SOURCES:
        shutil.copy(here / name, tmp_path / name)
    prints = {fingerprint(tmp_path, kind) for kind in cpu_flags()}
    assert len(prints) == len(cpu_flags())
    assert fingerprint(here, "DEFAULT") == fingerprint(tmp_path, "DEFAULT")
    (tmp_path / SOURCES[1]).write_text("")
    assert fingerprint(here, "DEFAULT") != fingerprint(tmp_path, "DEFAULT")


def test_several_processes_at_once(cache: Path) -> None:
    """Each compiles under a name of its own, and the last one to end stays."""
    children = []
    for _ in range(3):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = int(load() is None)
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
    assert [path.suffix for path in cache.iterdir()] == [".so"]


def test_without_a_cache(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file where the folder should be: the library is compiled for this process alone."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CTPO_CACHE_DIR", str(tmp_path / "file"))
    load()
    run(preset("ctpo", backend="native"), make())


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"CTPO_CACHE_DIR": "/a"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/ctpo/native"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/c"}, "/c/.cache/ctpo/native"),
    ],
)
def test_the_cache_folder(environment: dict[str, str], folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CTPO_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(library.cache_folder()) == folder


def test_a_missing_or_failing_compiler_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "which", lambda name: None)
        patch.delenv("CC", raising=False)
        with pytest.raises(ValueError, match=r'needs a C compiler; install gcc or clang, .* backend="auto"'):
            run(preset("ctpo", backend="native"), make())
        run(preset("ctpo"), make())  # needs none
    for compiler, message in (("false", "false failed"), ("/missing/cc", "No such file .*/missing/cc")):
        monkeypatch.setenv("CC", compiler)
        with pytest.raises(ValueError, match=message):
            run(preset("ctpo", backend="native"), make())
