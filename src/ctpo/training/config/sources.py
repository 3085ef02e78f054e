"""What settings and objectives there are, read from source files without importing torch, transformers or TRL.

Importing those takes several seconds, and a misspelled key should not wait for it. So the fields of `CTPOConfig` and
the presets of `ctpo.objectives` are read from the syntax trees of the installed sources. Tests compare both with what
an import gives. Where a source does not have the expected form, it is imported after all.
"""

from __future__ import annotations

import ast
import builtins
import difflib
import math
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from ctpo.errors import UserError

_CLASSES: Final = (
    ("transformers", "training_args.py", "TrainingArguments"),
    ("trl", "trainer/base_config.py", "_BaseConfig"),
    ("trl", "trainer/grpo_config.py", "GRPOConfig"),
)
"""GRPOConfig and the classes it inherits from, base first: package, file in it, name."""
_SFT: Final = ("trl", "trainer/sft_config.py", "SFTConfig")
_OLDER: Final = Path(__file__).with_name("older.py")
_CONFIG: Final = Path(__file__).with_name("config.py")
_OBJECTIVES: Final = Path(__file__).parents[2] / "objectives"


@dataclass(frozen=True)
class Field:
    """One field of a dataclass."""

    type: Any
    """Its type; `typing.Any` stands for parts that only transformers or TRL define."""
    default: Any
    """Its default, or `dataclasses.MISSING` where the source does not give a plain value."""


@cache
def trl_fields() -> Mapping[str, Field]:
    """The fields of TRL's GRPOConfig by name.

    Raises:
        UserError: if TRL is not installed.
    """
    try:
        return _inherited(_CLASSES)
    except (OSError, SyntaxError, LookupError):
        from trl import GRPOConfig

        return _imported(GRPOConfig)


@cache
def sft_fields() -> Mapping[str, Field]:
    """The fields of TRL's SFTConfig by name.

    Raises:
        UserError: if TRL is not installed.
    """
    try:
        return _inherited((*_CLASSES[:-1], _SFT))
    except (OSError, SyntaxError, LookupError):
        from trl import SFTConfig

        return _imported(SFTConfig)


@cache
def trainer_fields() -> Mapping[str, Field]:
    """The fields of `CTPOConfig` by name, those inherited from GRPOConfig included.

    Raises:
        UserError: if TRL is not installed.
    """
    older = _fields_of(_class(_parse(_OLDER), "OlderKeys"))
    return {**trl_fields(), **older, **_fields_of(_class(_parse(_CONFIG), "CTPOConfig"))}


@cache
def preset_knobs() -> Mapping[str, Mapping[str, Any]]:
    """The knobs of every preset with their defaults, as `ctpo.objectives.preset_defaults` gives them."""
    try:
        return _builders(_OBJECTIVES / "presets.py", "_PRESETS")
    except (OSError, SyntaxError, LookupError, ValueError):
        from ctpo.objectives import preset_defaults, preset_names

        return {name: preset_defaults(name) for name in preset_names()}


def check_presets(specs: Iterable[str]) -> None:
    """Check that presets exist, before torch is imported.

    Args:
        specs: names of presets, each with or without knobs: "ctpo?log_high=0.1".

    Raises:
        UserError: if one does not.
    """
    known = preset_knobs()
    for spec in specs:
        name = spec.partition("?")[0]
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"use one of {', '.join(known)}"
            raise UserError(f"objective {spec!r}: {name!r} is no preset; {hint}")


@cache
def correction_knobs() -> Mapping[str, Mapping[str, Any]]:
    """The knobs of every rollout correction, as `ctpo.objectives.correction_defaults` gives them."""
    try:
        return _builders(_OBJECTIVES / "named_corrections.py", "_CORRECTIONS")
    except (OSError, SyntaxError, LookupError, ValueError):
        from ctpo.objectives import correction_defaults, correction_names

        return {name: correction_defaults(name) for name in correction_names()}


def _builders(path: Path, table_name: str) -> Mapping[str, Mapping[str, Any]]:
    """The parameters of the functions in a table of a module, with the knobs `_SHARED` that all of them have.

    The functions are those of the module, and of the modules beside it whose names begin with its name.
    """
    tree = _parse(path)
    table, shared = _assigned(tree, table_name), ast.literal_eval(_assigned(tree, "_SHARED"))
    parts = [tree, *map(_parse, sorted(path.parent.glob(f"{path.stem}_*.py")))]
    functions = {node.name: node for part in parts for node in part.body if isinstance(node, ast.FunctionDef)}
    if not isinstance(table, ast.Dict):
        raise LookupError(table_name)
    return {
        ast.literal_eval(key): {**_defaults(functions[ast.unparse(value)]), **shared}
        for key, value in zip(table.keys, table.values, strict=True)
        if key is not None
    }


def _inherited(classes: Iterable[tuple[str, str, str]]) -> dict[str, Field]:
    """The fields of the last of these classes, each of which inherits from the one before."""
    fields: dict[str, Field] = {}
    for package, file, name in classes:
        fields |= _fields_of(_class(_parse(_folder(package) / file), name))
    return fields


def _folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"training needs {package}, which is not installed; pip install 'ctpo[train]'")
    return Path(next(iter(spec.submodule_search_locations)))


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _class(tree: ast.Module, name: str) -> ast.ClassDef:
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node
    raise LookupError(name)


def _fields_of(node: ast.ClassDef) -> dict[str, Field]:
    """The dataclass fields that a class body declares and that its `__init__` takes."""
    declared = {}
    for line in node.body:
        if not isinstance(line, ast.AnnAssign) or not isinstance(line.target, ast.Name):
            continue
        if ast.unparse(line.annotation).startswith("ClassVar"):
            continue
        options = {"default": line.value}
        if isinstance(line.value, ast.Call) and ast.unparse(line.value.func) == "field":
            options = {word.arg: word.value for word in line.value.keywords if word.arg}
        if _value(options.get("init")) is not False:
            declared[line.target.id] = Field(_type(line.annotation), _value(options.get("default")))
    return declared


def _value(node: ast.expr | None) -> Any:
    """The value that an expression spells out; MISSING if it is absent or must be computed."""
    if node is None:
        return MISSING
    try:
        return ast.literal_eval(node)
    except ValueError:
        return MISSING


class _Known(dict[str, Any]):
    """Names that an annotation may use: built-in types and those of `typing`; any other name stands for `Any`."""

    def __missing__(self, name: str) -> Any:
        return getattr(typing, name, getattr(builtins, name, Any))


def _type(annotation: ast.expr) -> Any:
    code = compile(ast.Expression(annotation), "<annotation>", "eval")
    return eval(code, {"__builtins__": {}}, _Known())


def _assigned(tree: ast.Module, name: str) -> ast.expr:
    """The expression that a module assigns to a name."""
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and node.value and ast.unparse(node.target) == name:
            return node.value
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return node.value
    raise LookupError(name)


def _defaults(function: ast.FunctionDef) -> dict[str, Any]:
    """A function's parameters with their defaults, which may call `math`."""
    arguments = function.args
    positional, defaults = arguments.args, arguments.defaults
    pairs = [*zip(positional, defaults, strict=True)]
    pairs += [
        (name, node)
        for name, node in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
        if node is not None
    ]
    scope = {"__builtins__": {}, "math": math}
    return {name.arg: eval(compile(ast.Expression(node), "<default>", "eval"), scope) for name, node in pairs}


def _imported(owner: type) -> Mapping[str, Field]:
    hints = typing.get_type_hints(owner)
    return {each.name: Field(hints[each.name], each.default) for each in fields(owner) if each.init}
