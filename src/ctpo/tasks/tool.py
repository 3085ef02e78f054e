"""The text protocol of the Python tool: how a model calls it, and how its output becomes text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from ctpo.tasks import fences

Style = Literal["tags", "fenced", "native", "auto"]
STYLES: tuple[Style, ...] = ("tags", "fenced", "native", "auto")

_NO_OUTPUT: Final = "(no output; use print)"
_ENDINGS: Final = {
    "error": "the program failed",
    "timeout": "the program was stopped because it ran too long",
    "memory": "the program was stopped because it used too much memory",
    "output_limit": "the program was stopped because it printed too much",
    "lost": "the program was stopped from outside and has no result",
}
"""How a program ended, by the sandbox's status."""
_MARK: Final = "\n[... {:,} characters left out ...]\n"
_ROOM_FOR_MARK: Final = 64
"""The least number of characters with which the mark is worth its room. A shorter text is cut at its end."""
_ROOM_FOR_WORDS: Final = 160
"""The least `max_result_chars` with which endings are written out."""

SUCCESS = "ok"  # the sandbox's status of a program that ended with exit code 0


@dataclass(frozen=True, kw_only=True)
class PythonTool:
    """The text protocol of a Python tool. The sandbox runs the programs, not this object.

    The model writes `open`, a program and `close`. The environment then appends the result of `render`, and the model
    continues after it.

    Raises:
        ValueError: if the settings contradict each other.

    Example:
        tool = PythonTool()
        tool.extract("print(3 + 67)</py>")  # "print(3 + 67)"
        tool.render("ok", "70\\n", "")      # "<out>70</out>"
    """

    open: str = "<py>"
    """The tag after which the model's text is a program."""
    close: str = "</py>"
    """The tag that ends the program and makes it run."""
    result_open: str = "<out>"
    """The tag before the interpreter's output."""
    result_close: str = "</out>"
    """The tag after the interpreter's output."""
    deterministic: bool = True
    """Whether equal programs print equal text. Then a program that was run before need not be run again."""
    max_calls: int = 8
    """How many calls a completion may make. Later calls are not run."""
    max_result_chars: int = 1024
    """The longest rendered output in characters, without the tags. Of a longer one the middle is left out."""
    error_mark: str | None = "error"
    """The text that the model reads in place of a failed program's output. None shows stdout, stderr and the ending."""
    result_charset: str | None = None
    """The characters that the model's vocabulary has. Any other becomes `substitute`. None allows all."""
    substitute: str = "?"
    """The replacement of a character outside `result_charset`, and of a tag of this tool that a program printed."""
    style: Style = "tags"
    """How a chat model calls the tool.

    `tags`: with the tags above, for every model. `fenced`: with the same opening and closing tags, and the output comes
    back as a tool message of the model's chat template if it has those (otherwise between the result tags). `native`:
    with the template's own tool calls. `auto`: native if the template has tool calls, otherwise fenced.
    `ctpo.rollout.calls` chooses the form of a given model."""

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise ValueError(f"style={self.style!r} is unknown; use one of {', '.join(STYLES)}")
        tags = self._tags()
        if not all(tags) or len({self.open, self.result_open}) < 2:
            raise ValueError(f"tool tags {tags!r} must be non-empty, and open must differ from result_open")
        for name in ("max_calls", "max_result_chars"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name}={value!r} is not a positive integer; use at least 1")
        if len(self.substitute) != 1 or any(self.substitute in tag for tag in tags):
            raise ValueError(
                f"substitute={self.substitute!r} must be one character that no tool tag contains"
            )
        written = (self.error_mark or "") + self.substitute
        if self.result_charset is not None and not set(written) <= set(self.result_charset):
            raise ValueError(
                f"result_charset={self.result_charset!r} lacks characters of error_mark={self.error_mark!r} "
                f"or substitute={self.substitute!r}; add them"
            )

    @property
    def fenced(self) -> bool:
        """Whether calls are fenced blocks. They are then read in every form of `ctpo.tasks.fences`."""
        return self.open.startswith("```")

    @property
    def closing_characters(self) -> str:
        """The characters of which one ends every call."""
        return fences.CHARACTERS if self.fenced else self.close[-1]

    @property
    def stops(self) -> tuple[str, ...]:
        """The texts of which one stands at the end of every call, for servers that take stop texts."""
        return fences.STOPS if self.fenced else (self.close,)

    def opens_call(self, text: str) -> bool:
        """Whether the text holds the beginning of a call."""
        return fences.opens_block(text) if self.fenced else self.open in text

    def extract(self, text_since_open: str) -> str:
        """The program in the text after the opening tag, up to the closing tag or the end of the text."""
        text = text_since_open.partition(self.close)[0]
        return fences.program_of(text) if self.fenced else text

    def last_call(self, text: str) -> str | None:
        """The program of the last call in the text, if that call is complete; otherwise None."""
        if self.fenced:
            block = fences.last_block(text)
            return block.program if block is not None and block.closed else None
        _, opened, body = text.rpartition(self.open)
        return self.extract(body) if opened and self.close in body else None

    def first_call(self, text: str, *, stopped: bool) -> tuple[str, str | None]:
        """The text up to the end of its first call, and that call's program (None without a call).

        Args:
            text: of a model's turn.
            stopped: whether a stop text ended the text. Then the closing tag may be missing, and is put back.
        """
        if self.fenced:
            block = fences.first_block(text)
            if block is None or not (block.closed or stopped):
                return text, None
            return text[: block.end] + ("" if block.closed else self.close), block.program
        before, opened, body = text.partition(self.open)
        program, closed, _ = body.partition(self.close)
        if not opened or not (closed or stopped):
            return text, None
        return before + opened + program + self.close, self.extract(program)

    def render(self, status: str, stdout: str, stderr: str) -> str:
        """The text that the environment appends after a call: `result_open + body + result_close`.

        Whatever the program printed, the body has at most `max_result_chars` characters, none of the tool's own tags,
        and no character outside `result_charset`. Of a long output the middle is left out, and a mark says how much.

        Without an `error_mark`, the body also says what happened, whatever the program printed: after a failure its
        last line names the status, and a success without output says so.

        Args:
            status: the sandbox's status; "ok" means that the program ended with exit code 0.
            stdout: the program's output, which is shown without surrounding white space.
            stderr: shown only after a failure, and only if `error_mark` is None.
        """
        # Cut first, so that a flood of output costs nothing. No later line makes the body longer.
        return self.framed(self._message(status, stdout.strip(), stderr.strip()))

    def framed(self, body: str) -> str:
        """The text between the result tags, with none of the tool's own tags in it."""
        before = self.result_open[-1]  # a tag may begin with it
        # White space alone looks like no tag, so a line feed in an output stays what it is.
        tags = re.compile("|".join(re.escape(tag) for tag in self._tags() if tag.strip()) or "(?!)")
        body = tags.sub(self.substitute, before + body).removeprefix(before)
        if self.result_charset is not None:
            body = "".join(c if c in self.result_charset else self.substitute for c in body)
        return self.result_open + body + self.result_close

    def body(self, rendered: str) -> str:
        """The part of a rendered output between the result tags."""
        return rendered.removeprefix(self.result_open).removesuffix(self.result_close)

    def example(self, problem: str, program: str, answer: str) -> tuple[dict[str, str], ...]:
        """The messages of a problem that one call solves: the problem, the program, its output, and a sentence."""
        return (
            {"role": "user", "content": problem},
            {"role": "assistant", "content": f"{self.open}\n{program}{self.close}"},
            {"role": "tool", "content": answer},
            {"role": "assistant", "content": f"The answer is {answer}."},
        )

    def _message(self, status: str, stdout: str, stderr: str) -> str:
        """What the model reads, in at most `max_result_chars` characters."""
        limit = self.max_result_chars
        words = self.error_mark is None and limit >= _ROOM_FOR_WORDS
        if status == SUCCESS:
            return self._cut(stdout or (_NO_OUTPUT if words else ""), limit)
        if not words:
            return self._cut(self.error_mark or f"{status} {stderr.rpartition(chr(10))[2]}".strip(), limit)
        ending = f"[{status}: {_ENDINGS.get(status, 'the program failed')}]"
        room = limit - len(ending) - 2  # two line feeds
        for_report = max(room // 2, room - len(stdout))
        # The last line of a traceback says what went wrong, but the message of an exception may have any length.
        before, feed, last = stderr.rpartition("\n")
        report = self._cut(before + feed + self._cut(last, for_report // 3), for_report)
        return "\n".join(part for part in (self._cut(stdout, room - len(report)), report, ending) if part)

    def _cut(self, text: str, limit: int) -> str:
        """The text in at most so many characters, with a mark only if the vocabulary has the mark's characters."""
        return without_middle(text, limit) if self.result_charset is None else text[:limit]

    def _tags(self) -> tuple[str, ...]:
        return (self.open, self.close, self.result_open, self.result_close)


def without_middle(text: str, limit: int) -> str:
    """The text, without its middle if it is longer than the limit, and with a mark in that place."""
    if len(text) <= limit:
        return text
    if limit < _ROOM_FOR_MARK:
        return text[:limit]
    kept = limit - len(_MARK.format(len(text)))
    mark = _MARK.format(len(text) - kept)
    return text[: kept - kept // 2] + mark + text[len(text) - kept // 2 :]


CHAT_TOOL = PythonTool(
    style="auto",
    open="```python",
    close="\n```",
    result_open="\n```output\n",
    result_close="\n```\n",
    error_mark=None,  # a chat model can read a traceback
    deterministic=False,  # a program may draw random numbers
)
"""The Python tool of a chat model: the model's own tool calls if it has them, otherwise fenced blocks."""
