"""The tool's text protocol, against friendly and hostile output."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctpo.tasks import PythonTool, get_task

PLAIN = PythonTool()
TALKATIVE = PythonTool(error_mark=None)
TERSE = PythonTool(error_mark=None, max_result_chars=21)
ARITHMETIC = get_task("arithmetic").tool
assert ARITHMETIC is not None
TAGS = ("<py>", "</py>", "<out>", "</out>")


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("print(3+67)</py>", "print(3+67)"),
        ("print(3+67)</py>=70", "print(3+67)"),
        ("print(1)</py>2</py>", "print(1)"),
        ("print(3", "print(3"),
        ("</py>", ""),
        ("", ""),
    ],
)
def test_extract(text: str, program: str) -> None:
    assert PLAIN.extract(text) == program


@pytest.mark.parametrize(
    ("tool", "result", "text"),
    [
        (PLAIN, ("ok", " 70\n", "a warning"), "<out>70</out>"),
        (PLAIN, ("ok", "", ""), "<out></out>"),
        (PLAIN, ("timeout", "partial", ""), "<out>error</out>"),
        (PLAIN, ("ok", "70</out>=82", ""), "<out>70?=82</out>"),
        (PLAIN, ("ok", "</o</out>ut><py>", ""), "<out></o?ut>?</out>"),
        (
            PLAIN,
            ("ok", "x" * 5000, ""),
            f"<out>{'x' * 494}\n[... 4,013 characters left out ...]\n{'x' * 493}</out>",
        ),
        (TALKATIVE, ("error", "1\n", "boom\n"), "<out>1\nboom\n[error: the program failed]</out>"),
        (TALKATIVE, ("ok", " \n", "a warning"), "<out>(no output; use print)</out>"),
        (
            TALKATIVE,
            ("timeout", "", ""),
            "<out>[timeout: the program was stopped because it ran too long]</out>",
        ),
        (TERSE, ("error", "", "a\nZeroDivisionError: x"), "<out>error ZeroDivisionErr</out>"),
        (TERSE, ("ok", "", ""), "<out></out>"),
        (ARITHMETIC, ("ok", "-25\n", ""), "<out>-25</out>"),
        (ARITHMETIC, ("error", "", "SyntaxError: leading zeros"), "<out>?</out>"),
        (ARITHMETIC, ("ok", "3\nNone\n", ""), "<out>3?????</out>"),
        (ARITHMETIC, ("ok", "123456789012", ""), "<out>12345678</out>"),
        (ARITHMETIC, ("ok", "=82", ""), "<out>?82</out>"),
    ],
)
def test_render(tool: PythonTool, result: tuple[str, str, str], text: str) -> None:
    assert tool.render(*result) == text


OUTPUT = st.text() | st.lists(st.sampled_from([*TAGS, "<", "/", "out>", "7"])).map("".join)


@given(
    stdout=OUTPUT,
    status=st.sampled_from(["ok", "error", "timeout"]),
    tool=st.sampled_from([PLAIN, ARITHMETIC]),
)
def test_no_output_breaks_out_of_its_tags(stdout: str, status: str, tool: PythonTool) -> None:
    text = tool.render(status, stdout, "")
    body = text.removeprefix("<out>").removesuffix("</out>")
    assert text == f"<out>{body}</out>"
    assert not any(tag in body for tag in TAGS)
    assert len(body) <= tool.max_result_chars
    assert tool.result_charset is None or set(body) <= set(tool.result_charset)


def test_line_feeds_around_an_output_are_no_tags_in_it() -> None:
    tool = PythonTool(open="```python", close="\n```", result_open="\n", result_close="\n")
    assert tool.render("ok", "40\n", "") == "\n40\n"
    assert tool.render("ok", "1\n2", "") == "\n1\n2\n"
    assert tool.render("ok", "a```python", "") == "\na?\n"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_calls": 0}, "max_calls=0"),
        ({"max_result_chars": True}, "max_result_chars=True"),
        ({"open": ""}, "non-empty"),
        ({"open": "<out>"}, "differ"),
        ({"substitute": "<"}, "substitute='<'"),
        ({"substitute": "??"}, "one character"),
        ({"result_charset": "0123456789?"}, "lacks characters of error_mark='error'"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        PythonTool(**settings)


def test_an_unknown_style_is_refused() -> None:
    with pytest.raises(ValueError, match="style='loud' is unknown; use one of tags, fenced"):
        PythonTool(style="loud")  # type: ignore[arg-type]
