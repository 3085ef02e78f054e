"""Which programs stand in a model's calls, and what the model reads of how they ended."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ctpo.tasks import PythonTool

TALKATIVE = PythonTool(error_mark=None)
FENCED = PythonTool(open="```python", close="\n```", result_open="\n```output\n", result_close="\n```\n")
PLAIN = PythonTool()


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```python\nprint(1)\n```", "print(1)\n"),
        ("Let me see: ```python\nprint(1)\n```", "print(1)\n"),
        ("```py\nprint(1)\n```\n", "print(1)\n"),
        ("```Python\nprint(1)\n```\n", "print(1)\n"),
        ("```python3\nprint(1)\n```\n", "print(1)\n"),
        ("```python3.11\nprint(1)\n```\n", "print(1)\n"),
        ("``` python\nprint(1)\n```\n", "print(1)\n"),
        ("```python {.numbers}\nprint(1)\n```\n", "print(1)\n"),
        ("```python print(1)\n```", "print(1)\n"),
        ("~~~python\nprint(1)\n~~~", "print(1)\n"),
        ("~~~python\ns = '''\n```\n'''\n~~~", "s = '''\n```\n'''\n"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''\n"),
        ("1. Compute:\n   ```python\n   if x:\n       print(1)\n   ```\n", "if x:\n    print(1)\n"),
        ("- ```python\n  print(1)\n  ```", "print(1)\n"),
        ("```python\n    print(1)\n    print(2)\n```", "print(1)\nprint(2)\n"),
        ("```python\nprint(1)```\n", "print(1)"),
        ("```python\nprint(1)```", "print(1)"),
        ("```python\n```", ""),
        # not yet, or never, a call
        ("```python\nprint(1)", None),
        ("```python\nprint('```", None),
        ("```python\nprint('```')\n", None),
        ("```python\n# between ``` and ```", None),
        ("```python", None),
        ("```pycon\n>>> 1\n```", None),
        ("```pytb\nError\n```", None),
        ("```\nprint(1)\n```", None),
        ("```text\nprint(1)\n```", None),
        ("I write ```python blocks.\n```text\na\n```", None),
    ],
)
def test_fenced_blocks_are_read_as_the_model_meant_them(text: str, program: str | None) -> None:
    assert FENCED.last_call(text) == program
    if program is not None:
        cut = FENCED.first_call(text.rstrip("\n") + "\nand more", stopped=False)
        assert cut == (text.rstrip("\n"), program)


def test_the_last_block_counts_while_sampling_and_the_first_in_a_whole_reply() -> None:
    text = "```python\nprint('a')\n```\nthen\n```py\nprint('b')\n```"
    assert FENCED.last_call(text) == "print('b')\n"
    assert FENCED.first_call(text, stopped=False) == ("```python\nprint('a')\n```", "print('a')\n")
    stopped = "```py\nprint('a')"
    assert FENCED.first_call(stopped, stopped=True) == (stopped + "\n```", "print('a')")
    assert FENCED.first_call(stopped, stopped=False) == (stopped, None)


def test_the_first_prefix_with_a_call_has_the_whole_program() -> None:
    """An engine looks after every token, so a fence inside of a string or a comment must not end the block."""
    code = "for c in '`~':\n    print(f'{c}```', \"~~~\")\nx = 1  # ``` ~~~ \n"
    text = f"Look:\n```py\n{code}```\nDone."
    calls = [FENCED.last_call(text[:end]) for end in range(len(text))]
    assert next(call for call in calls if call is not None) == code


@pytest.mark.parametrize(
    "text",
    ["`" * 200_000, "~~~py " * 40_000, "```python\n" + " " * 300_000, ("- " * 100 + "\n") * 2000],
    ids=["backticks", "openings", "spaces", "lists"],
)
def test_odd_text_takes_linear_time(text: str) -> None:
    """Each of these would take minutes with an expression that tries a run again from each of its characters."""
    assert FENCED.last_call(text) is None
    assert FENCED.first_call(text, stopped=False) == (text, None)


def test_only_fenced_tools_read_other_fences() -> None:
    assert PLAIN.last_call("```python\nprint(1)\n```") is None
    assert PLAIN.last_call("<py>print(1)</py>") == "print(1)"
    assert (PLAIN.closing_characters, PLAIN.stops) == (">", ("</py>",))


@settings(max_examples=60)
@given(
    status=st.sampled_from(["error", "timeout", "memory", "output_limit", "lost", "killed"]),
    printed=st.integers(0, 5000),
    frames=st.integers(0, 300),
    message=st.integers(0, 9000),
    limit=st.integers(160, 3000),
)
def test_a_failure_is_never_hidden_behind_output(
    status: str, printed: int, frames: int, message: int, limit: int
) -> None:
    """Whatever a program prints, its status is in the last line, and with room also the name of its exception."""
    stdout = "x" * printed
    stderr = "Traceback\n" + '  File "<program>", line 1, in f\n' * frames + "ValueError: " + "y" * message
    tool = replace(TALKATIVE, max_result_chars=limit)
    body = tool.body(tool.render(status, stdout, stderr))
    assert len(body) <= limit
    last = body.splitlines()[-1]
    assert last.startswith(f"[{status}: the program ")
    assert last.endswith("]")
    if limit >= 512:
        assert "ValueError:" in body
    if limit >= 512 and printed <= 100:
        assert stdout in body  # a short output is never cut because of a long traceback


def test_the_mark_counts_what_is_missing() -> None:
    for length in (1025, 1100, 9_999, 123_456):
        body = TALKATIVE.body(TALKATIVE.render("ok", "x" * length, ""))
        (missing,) = re.findall(r"\[\.\.\. ([0-9,]+) characters left out \.\.\.\]", body)
        shown = len(re.sub(r"\n\[[^]]*\]\n", "", body))
        assert shown + int(missing.replace(",", "")) == length
        assert len(body) <= 1024


@pytest.mark.parametrize(
    ("program", "ending", "part"),
    [
        ("print('x = 42', flush=True)\nwhile True: pass", "[timeout: ", "x = 42"),
        ("print('x = 42', flush=True)\na = [0] * 10**10", "[memory: ", "x = 42"),
        ("print('7 ' * 5500)\n1/0", "[error: ", "ZeroDivisionError: division by zero"),
        ("print('7' * 10**7)", "[output_limit: ", "characters left out"),
        ("import sys; print('x = 42'); sys.exit(1)", "[error: ", "x = 42"),
        ("import os; print('x = 42', flush=True); os.abort()", "[error: ", "x = 42"),
        ("raise ValueError('y' * 10**5)", "[error: ", "ValueError: yyy"),
    ],
)
def test_real_endings(sandbox: Any, program: str, ending: str, part: str) -> None:
    (result,) = sandbox.run([program])
    body = TALKATIVE.body(TALKATIVE.render(result.status, result.stdout, result.stderr))
    assert body.splitlines()[-1].startswith(ending)
    assert part in body
