"""What mkdocs calls while it builds the site (mkdocs.yml)."""

from __future__ import annotations

import logging
import os
import posixpath
import re
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1]))

from mkdocs.structure.files import File, Files

from handbook import api, pages

LOG: Final = logging.getLogger("mkdocs.hooks.handbook")
"""Warnings to this logger fail a strict build."""
REPOSITORY: Final = tomllib.loads((pages.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"][
    "urls"
]["Repository"]
"""The address of the repository. It is not mkdocs' `repo_url`, for which the theme asks GitHub at each visit."""
_LINK: Final = re.compile(r"(\]\()([^)#\s]+?)(#[^)\s]*)?(\))")
_PROGRAM: Final = re.compile(r"<!-- program: (\S+) -->")
"""Where a page shows a program of the repository."""
_FENCE: Final = re.compile(r"^(`{3,}|~{3,}).*?^\1[ \t]*$", re.DOTALL | re.MULTILINE)


def on_config(config: Any) -> Any:
    """Add the recipes to the navigation."""
    recipes = [place for place in pages.taken() if place.startswith("recipes/")]
    next(part["How-to"] for part in config.nav if "How-to" in part).append({"Recipes": recipes})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made from the code, and those from elsewhere in the repository."""
    for place, make in pages.made().items():
        files.append(File.generated(config, place, content=make()))
    for place, path in pages.taken().items():
        text = (pages.ROOT / path).read_text(encoding="utf-8")
        files.append(File.generated(config, place, content=text))
        for picture in sorted((pages.ROOT / path).parent.glob("*.png")) if path.parts[0] == "recipes" else ():
            # beside the page, as it is beside the README
            shown = f"recipes/{picture.name}"
            files.append(File.generated(config, shown, abs_src_path=str(picture)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links that leave `docs/` into links to the page that holds the file, or to the repository."""
    source = pages.taken().get(page.file.src_uri, Path("docs") / page.file.src_uri)
    places = {path.as_posix(): place for place, path in pages.taken().items()}

    def redirected(found: re.Match[str]) -> str:
        before, target, anchor, after = found[1], found[2], found[3] or "", found[4]
        if "://" in target or target.startswith("mailto:"):
            return _inside(found, page)
        path = posixpath.normpath(posixpath.join(source.parent.as_posix(), target))
        place = places.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if place is None and path.startswith("recipes/") and path.endswith(".png"):
            place = f"recipes/{Path(path).name}"
        if place is not None:
            here = posixpath.dirname(page.file.src_uri) or "."
            return before + posixpath.relpath(place, here) + anchor + after
        if not (pages.ROOT / path).exists():
            LOG.warning("%s links to %s, which does not exist", source, target)
        kind = "tree" if (pages.ROOT / path).is_dir() else "blob"
        return f"{before}{REPOSITORY}/{kind}/main/{path}{anchor}{after}"

    markdown = _PROGRAM.sub(_program, markdown)
    # Code stays as it is.
    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [_LINK.sub(redirected, markdown[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, _LINK.sub(redirected, markdown[end:])])


def _program(found: re.Match[str]) -> str:
    """The text of a program, in a block that can be folded away, with a link to its file."""
    path = Path(found[1])
    if not (pages.ROOT / path).is_file():
        LOG.warning("the program %s does not exist", path)
        return ""
    code = (pages.ROOT / path).read_text(encoding="utf-8").rstrip()
    language = "yaml" if path.suffix == ".yaml" else "python"
    return f'```{language} title="{path}"\n{code}\n```'


def _inside(found: re.Match[str], page: Any) -> str:
    """The link itself; one to a page of the repository's documentation leads to the page of this site."""
    prefix = f"{REPOSITORY}/blob/main/docs/"
    if not found[2].startswith(prefix):
        return found[0]
    here = posixpath.dirname(page.file.src_uri) or "."
    return found[1] + posixpath.relpath(found[2].removeprefix(prefix), here) + (found[3] or "") + found[4]


def on_post_build(config: Any) -> None:
    """Check that every public name has a place in the API, and that the site loads nothing from the network."""
    site = Path(config.site_dir)
    for module in api.modules_with_all():
        if module not in {each for modules in api.PAGES.values() for each in modules}:
            LOG.warning("%s has __all__ and no page; give it a place in scripts/handbook/api.py", module)
    for name, modules in api.PAGES.items():
        html = (site / "reference" / "api" / f"{name}.html").read_text(encoding="utf-8")
        for module in modules:
            for each in api.public_names(module):
                if f'id="{module}.{each}"' not in html:
                    LOG.warning("%s.%s is public and is not on the page reference/api/%s", module, each, name)
    for path in sorted(site.rglob("*.html")):
        loaded = re.findall(
            r'<(?:script|img|iframe|source)[^>]*\ssrc="(?:https?:)?//[^"]*"|'
            r'<link[^>]*rel="(?:stylesheet|preload|preconnect|icon)"[^>]*href="(?:https?:)?//[^"]*"',
            path.read_text(encoding="utf-8"),
        )
        if loaded:
            LOG.warning("%s loads from the network: %s", os.path.relpath(path, site), loaded[0])
