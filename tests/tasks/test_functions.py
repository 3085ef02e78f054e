"""Python functions as tools: what is declared, which arguments are taken, and what the model reads."""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from ctpo.errors import UserError
from ctpo.tasks import PythonTool, Task, get_task
from ctpo.tasks.functions import FunctionTool, UnusableArguments, as_tools, describe


class Color(enum.Enum):
    RED = "r"
    GREEN = "g"


def paint(
    what: str,
    count: int = 1,
    share: float | None = None,
    color: Color = Color.RED,
    sizes: list[int] | str = "",
    finish: Literal["matt", 3] = "matt",
    more: dict[str, int] | None = None,
    dry: bool = False,
    anything: Any = None,
    brush: str = "flat",
) -> None:
    """Paint a thing.

    Args:
        what: the thing
        count: how many
        share: of the surface
        color: of the paint
        sizes: of the things
        finish: of the surface
        more: by name
        dry: whether to wait
        anything: else
        brush: to use (choices: ["flat", "round"])
    """


PAINT = FunctionTool(paint)


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ({"what": "a", "count": 3.0}, {"what": "a", "count": 3}),
        ({"what": "a", "count": 2**53 + 1}, {"what": "a", "count": 2**53 + 1}),
        ({"what": "a", "share": 1, "dry": True}, {"what": "a", "share": 1.0, "dry": True}),
        ({"what": "a", "share": None}, {"what": "a", "share": None}),
        ({"what": "a", "color": "g", "finish": 3.0}, {"what": "a", "color": Color.GREEN, "finish": 3}),
        ({"what": "a", "sizes": [1.0, 2]}, {"what": "a", "sizes": [1, 2]}),
        ({"what": "\ud83d", "more": {"b": 1.0}}, {"what": "\ufffd", "more": {"b": 1}}),
        ({"what": "a", "anything": [{"b": None}], "brush": "round"},) * 2,
    ],
)
def test_arguments_that_fit_are_taken(given: dict[str, Any], taken: dict[str, Any]) -> None:
    values = PAINT.arguments(given)
    assert values == taken
    assert {name: type(each) for name, each in values.items()} == {n: type(each) for n, each in taken.items()}


DEEP: list[Any] = []
for _ in range(10_000):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (
            {},
            "argument 'what' is missing; the arguments of paint are what (string), count (integer, optional), ",
        ),
        (["a"], "arguments are a list, not an object; "),
        (None, "arguments are null, not an object; "),
        ("a", 'arguments are "a", not an object; '),
        ({"what": "a", "cuont": 3}, 'there is no argument "cuont"; '),
        ({"what": 1}, "argument 'what' is 1; use a valid string; "),
        ({"what": "a", "count": "3"}, "argument 'count' is \"3\"; use a valid integer; "),
        ({"what": "a", "count": True}, "argument 'count' is true; use a valid integer; "),
        ({"what": "a", "count": 2.5}, "argument 'count' is 2.5; use a valid integer; "),
        ({"what": "a", "count": None}, "argument 'count' is null; use a valid integer; "),
        ({"what": "a", "dry": 1}, "argument 'dry' is 1; use a valid boolean; "),
        ({"what": "a", "sizes": [1, "b"]}, "argument 'sizes' [1] is [1, \"b\"]; use a valid integer; "),
        ({"what": "a", "more": {"b": "c"}}, 'argument \'more\' is {"b": "c"}; use a valid integer; '),
        ({"what": "a", "color": "blue"}, 'argument \'color\' is "blue", not one of ["r", "g"]; '),
        ({"what": "a", "finish": True}, "argument 'finish' is true, not one of [\"matt\", 3]; "),
        ({"what": "a", "brush": "oval"}, 'argument \'brush\' is "oval", not one of ["flat", "round"]; '),
        ({"what": "a", "share": float("nan")}, "argument 'share' holds what JSON does not have, "),
        ({"what": "a", "anything": DEEP}, "argument 'anything' holds what JSON does not have, "),
        ({"what": "a", "count": 10**5000}, "argument 'count' holds what JSON does not have, "),
        (
            {"what": "a", **dict.fromkeys(map(str, range(999)), 1)},
            'there is no argument "0"; there is no argument "1"',
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused_in_words(given: Any, reason: str) -> None:
    with pytest.raises(UnusableArguments) as refused:
        PAINT.arguments(given)
    assert str(refused.value).startswith(reason)
    assert len(str(refused.value)) < 700


def test_the_declaration_is_that_of_transformers() -> None:
    from transformers.utils import get_json_schema

    assert PAINT.schema == get_json_schema(paint)
    renamed = FunctionTool(paint, name="brush_on")
    assert renamed.schema["function"] == {**get_json_schema(paint)["function"], "name": "brush_on"}


class Library:
    def search(self, query: str) -> str:
        """Search.

        Args:
            query: words
        """
        return query


def bare(x: int) -> None: ...


def untyped(x) -> None:  # type: ignore[no-untyped-def]
    """Do."""


def silent(x: int) -> None:
    """Do."""


def variadic(*x: int) -> None:
    """Do.

    Args:
        x: it
    """


def keywords(**x: int) -> None:
    """Do.

    Args:
        x: it
    """


def positional(x: int, /) -> None:
    """Do.

    Args:
        x: it
    """


def classy(x: Library) -> None:
    """Do.

    Args:
        x: it
    """


def lost(x: Nowhere) -> None:  # type: ignore[name-defined]  # noqa: F821
    """Do.

    Args:
        x: it
    """


def yielding(x: int) -> Iterator[int]:
    """Do.

    Args:
        x: it
    """
    yield x


@pytest.mark.parametrize(
    ("function", "settings", "part"),
    [
        (bare, {}, "tool bare has no docstring; say in one"),
        (untyped, {}, "tool untyped: parameter 'x' has no type hint; write x: str"),
        (silent, {}, "the docstring has no description for the argument 'x'"),
        (variadic, {}, "tool variadic: a model cannot give '*x' by name"),
        (keywords, {}, "tool keywords: a model cannot give '**x' by name"),
        (positional, {}, "tool positional: a model cannot give 'x' by name"),
        (classy, {}, "tool classy: a model cannot write parameter 'x'"),
        (lost, {}, "tool lost: its type hints cannot be read (name 'Nowhere' is not defined)"),
        (yielding, {}, "tool yielding yields its results; return them"),
        (Library.search, {}, "tool search: parameter 'self' has no type hint"),
        (lambda x: x, {}, "tool '<lambda>' has no name that a model can call"),
        (functools.partial(paint, "a"), {}, "has no name that a model can call"),
        (3, {}, "tool 3 is not a function"),
        (paint, {"name": "a-b"}, "tool 'a-b' has no name"),
        (paint, {"name": "é"}, "has no name"),
        (paint, {"timeout_s": 0}, "timeout_s=0 is out of range"),
        (paint, {"timeout_s": float("inf")}, "timeout_s=inf is out of range"),
        (paint, {"max_calls": True}, "max_calls=True is not a positive integer"),
        (paint, {"max_result_chars": 0}, "max_result_chars=0 is not a positive integer"),
    ],
)
def test_what_cannot_be_declared_is_refused_in_one_line(
    function: Callable[..., Any], settings: dict[str, Any], part: str
) -> None:
    with pytest.raises(UserError) as refused:
        FunctionTool(function, **settings)
    assert part in str(refused.value)
    assert "\n" not in str(refused.value)


def test_bound_methods_and_names_of_ones_own() -> None:
    first, second = as_tools([Library().search, FunctionTool(Library().search, name="find")])
    assert (first.name, second.name) == ("search", "find")
    assert first.arguments({"query": "a"}) == {"query": "a"}
    with pytest.raises(UserError, match="two tools are called 'search'"):
        as_tools([first, Library().search])


class Silent:
    def __repr__(self) -> str:
        return "<Silent>"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("<b>ä</b>", "<b>ä</b>"),
        ({"a": [1, None, True]}, '{"a": [1, null, true]}'),
        ((1, "ä"), '[1, "ä"]'),
        (None, "null"),
        (1.5, "1.5"),
        (b"a", "b'a'"),
        (Silent(), "<Silent>"),
        ({(1, 2): 3}, "{(1, 2): 3}"),
        ("\ud83d", "\ufffd"),
    ],
)
def test_what_comes_back_is_text(value: Any, text: str) -> None:
    assert PAINT.result(value) == text


def test_no_text_is_longer_than_the_limit() -> None:
    for limit in (1, 10, 100, 1000):
        tool = FunctionTool(paint, max_result_chars=limit)
        long = ValueError("a" * 50_000)
        for text in (tool.result("a" * 50_000), tool.failure(long), tool.out_of_time()):
            assert len(text) <= limit
        if limit >= 100:
            assert "characters left out" in tool.result("a" * 50_000)
            assert tool.failure(long).endswith("\n[error: paint failed]")


def test_an_error_is_described_even_if_it_cannot_be_shown() -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert describe(Odd()) == "Odd"
    assert describe(KeyError("a")) == "KeyError: 'a'"


def test_a_task_takes_functions_beside_the_python_tool() -> None:
    common: dict[str, Any] = {"name": "t", "problems": lambda *_: [], "check": lambda *_: True}
    task = Task(**common, tools=[Library().search, PythonTool(), FunctionTool(paint, timeout_s=1)])
    assert task.tool == PythonTool()
    assert [tool.name for tool in task.functions] == ["search", "paint"]
    assert task.all_tools == (PythonTool(), *task.functions)
    assert task.conversational
    again = dataclasses.replace(task, system="Be brief.")
    assert again.all_tools == task.all_tools
    with pytest.raises(ValueError, match="two Python tools"):
        Task(**common, tool=PythonTool(), tools=[PythonTool()])
    python = FunctionTool(paint, name="python")
    assert Task(**common, tools=[python]).functions == (python,)
    with pytest.raises(ValueError, match="'python' is the name of the Python tool"):
        Task(**common, tool=PythonTool(), tools=[python])


FILE = '''
from ctpo.tasks import FunctionTool

def search(query: str) -> str:
    """Search.

    Args:
        query: words
    """
    return query

find = FunctionTool(search, name="find", timeout_s=2)
number = 3
'''


def test_functions_are_taken_from_files_and_modules(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    task = get_task("gsm8k", [f"{path}:search", f"{path}:find", f"{__name__}:paint"])
    assert [tool.name for tool in task.functions] == ["search", "find", "paint"]
    assert [tool.timeout_s for tool in task.functions] == [10, 2, 10]
    assert task.functions[0].function is task.functions[1].function  # the file is run once
    assert task.tool == get_task("gsm8k").tool


@pytest.mark.parametrize(
    ("place", "part"),
    [
        ("mine.py", "is no place; write FILE.py:FUNCTION"),
        ("nosuch.py:search", "nosuch.py does not exist"),
        ("mine.py:other", "there is no 'other' in it"),
        ("mine.py:number", "its 'number' is of type int"),
        ("broken.py:search", "broken.py line 2 cannot be run (ZeroDivisionError"),
        ("nosuch.module:search", "nosuch.module cannot be imported (ModuleNotFoundError"),
        ("os:getenv", "tool getenv: parameter 'key' has no type hint"),
    ],
)
def test_a_place_without_a_function_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, part: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "broken.py").write_text("\n1 / 0\n")
    with pytest.raises(UserError) as refused:
        get_task("gsm8k", [place])
    assert part in str(refused.value)
    assert "\n" not in str(refused.value)
