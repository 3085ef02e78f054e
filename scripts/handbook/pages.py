"""All pages that are made from the code, and those that are taken from elsewhere in the repository."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]


def made() -> dict[str, Callable[[], str]]:
    """The generated pages: their place below `docs/`, and what makes their text."""
    from handbook import api, commands, files, messages, presets, settings

    return {
        "reference/presets.md": presets.page,
        "reference/settings.md": settings.page,
        "reference/commands.md": commands.page,
        "reference/files.md": files.page,
        "reference/messages.md": messages.page,
        **{f"reference/api/{name}.md": partial(api.page, name) for name in api.PAGES},
    }


def taken() -> dict[str, Path]:
    """The pages that lie elsewhere: their place below `docs/`, and their file from the repository's root."""
    recipes = sorted(path.relative_to(ROOT) for path in ROOT.glob("recipes/*/README.md"))
    return {
        **{f"recipes/{path.parent.name}.md": path for path in recipes},
        "project/contributing.md": Path("CONTRIBUTING.md"),
        "project/changelog.md": Path("CHANGELOG.md"),
    }
