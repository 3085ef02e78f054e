"""YAML as recipes need it: plain values, no tags, few aliases, no key twice.

YAML can do more than a recipe needs, and each of these has hurt somebody: tags that make Python objects, aliases that
make a page of megabytes (or never end), nesting that exhausts the stack, a second `key:` that silently wins, `010`
read as 8, `1:30` as 90, and `2026-01-31` as a date.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError
from yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode

from ctpo.runs.files import read_text

MOST_BYTES: Final = 2**18
"""The largest YAML file that is read, 256 KiB. The recipe of a run has some thousand bytes."""
_DEEPEST: Final = 50
_MOST_ALIASED: Final = 10_000
"""The largest number of values that all aliases together may stand for."""
_LIKE_NUMBERS: Final = re.compile(
    r"[-+]?(0[0-7_]+|[1-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?|0[0-7_]*:[0-9:.]+)"
)
"""What YAML 1.1 reads as an octal number, or as a number of base 60."""


class _Loader(yaml.SafeLoader):
    """A `SafeLoader` that refuses what no recipe needs."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._aliased = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            held = self.anchors.get(event.anchor)
            if held is not None and id(held) not in self._sizes:
                raise _refusal("an alias stands inside of what it names", event)
            self._aliased += self._sizes.get(id(held), 1)
            if self._aliased > _MOST_ALIASED:
                raise _refusal(f"aliases stand for more than {_MOST_ALIASED} values", event)
            return super().compose_node(parent, index)
        self._depth += 1
        if self._depth > _DEEPEST:
            raise _refusal(f"it is nested more than {_DEEPEST} deep", event)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is not None:
            self._sizes[id(node)] = self._size(node)
        return node

    def _size(self, node: Node) -> int:
        """Return the number of values that a node stands for. Those below it are counted already."""
        if not isinstance(node, CollectionNode):
            return 1
        inner = [each for pair in node.value for each in (pair if isinstance(pair, tuple) else (pair,))]
        return 1 + sum(self._sizes.get(id(each), 1) for each in inner)

    def construct_mapping(self, node: MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise ConstructorError(None, None, "a key is not a plain word", key.start_mark)
            if key.value in seen:
                raise ConstructorError(None, None, f"the key {key.value!r} is there twice", key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _refusal(reason: str, event: Any) -> ComposerError:
    return ComposerError(None, None, reason, event.start_mark)


def _plain_number(loader: yaml.SafeLoader, node: ScalarNode) -> Any:
    """Return a number; text if the form is one that YAML 1.1 reads as another number than people do."""
    if _LIKE_NUMBERS.fullmatch(node.value):
        return node.value
    known = node.tag.endswith(":int")
    return loader.construct_yaml_int(node) if known else loader.construct_yaml_float(node)


def _refuse(loader: yaml.SafeLoader, node: Node) -> Any:
    raise ConstructorError(None, None, f"a recipe has no values of the type {node.tag!r}", node.start_mark)


_Loader.add_constructor("tag:yaml.org,2002:int", _plain_number)
_Loader.add_constructor("tag:yaml.org,2002:float", _plain_number)
_Loader.add_constructor("tag:yaml.org,2002:timestamp", lambda loader, node: node.value)
for _tag in (*(f"tag:yaml.org,2002:{name}" for name in ("binary", "omap", "pairs", "set")), None):
    _Loader.add_constructor(_tag, _refuse)  # None: every tag that is not known


def parse_yaml(text: str) -> Any:
    """Return the values of a YAML text.

    Dates, `010` and `1:30` stay text. At most 50 levels and 10,000 aliased values are allowed.

    Raises:
        ValueError: if the text is not such YAML; the message is one line and names the line of the text.
    """
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f"line {mark.line + 1}: "
        raise ValueError(f"{line}{error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None
    except (RecursionError, ArithmeticError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"it cannot be read ({type(error).__name__})") from None


def read_yaml(path: Path) -> Any:
    """Return the values in a YAML file.

    Raises:
        OSError: if it cannot be read, is no regular file, or is too large.
        ValueError: if it is not UTF-8, or as `parse_yaml` does.
    """
    return parse_yaml(read_text(path, MOST_BYTES))
