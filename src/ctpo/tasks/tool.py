"""The text protocol of the Python tool: how a model calls it, and how its output becomes text."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Literal

Style = Literal["tags", "fenced", "native", "auto"]
STYLES: tuple[Style, ...] = ("tags", "fenced", "native", "auto")

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
    """The longest rendered output in characters, without the tags. The rest is cut off."""
    error_mark: str | None = "error"
    """The text that the model reads in place of a failed program's output. None shows stdout and stderr."""
    result_charset: str | None = None
    """The characters that the model's vocabulary has. Any other becomes `substitute`. None allows all."""
    substitute: str = "?"
    """The replacement of a character outside `result_charset`, and of a tag of this tool that a program printed."""
    style: Style = "tags"
    """How a chat model calls the tool.

    `tags`: with the tags above, for every model. `fenced`: with the same opening and closing tags, and the output comes
    back as a tool message of the model's chat template if it has those (otherwise between the result tags). `native`:
    with the template's own tool calls. `auto`: native if the template has tool calls, otherwise fenced.
    `ctpo.rollout.chat` turns the last three into the tags of a given model."""
    json_arguments: bool = False
    """Whether the text between the tags is a JSON tool call with the program as argument `code`."""

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

    def extract(self, text_since_open: str) -> str:
        """The program in the text after the opening tag, up to the closing tag or the end of the text.

        A JSON call that cannot be read is returned unchanged: when it runs, the model sees the error.
        """
        text = text_since_open.partition(self.close)[0]
        if not self.json_arguments:
            return text
        try:
            call = json.loads(text)
            arguments = call["arguments"]
            code = (json.loads(arguments) if isinstance(arguments, str) else arguments)["code"]
        except (ValueError, KeyError, TypeError, RecursionError):
            return text.strip()
        return code if isinstance(code, str) else text.strip()

    def render(self, status: str, stdout: str, stderr: str) -> str:
        """The text that the environment appends after a call: `result_open + body + result_close`.

        Whatever the program printed, the body has at most `max_result_chars` characters, none of the tool's own tags,
        and no character outside `result_charset`.

        Args:
            status: the sandbox's status; "ok" means that the program ended with exit code 0.
            stdout: the program's output, which is shown without surrounding white space.
            stderr: shown only after a failure, and only if `error_mark` is None.
        """
        # Cut first, so that a flood of output costs nothing. No later line makes the body longer.
        body = self._message(status, stdout, stderr)[: self.max_result_chars]
        body = re.sub("|".join(map(re.escape, self._tags())), self.substitute, body)
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
        if status == SUCCESS:
            return stdout.strip()
        if self.error_mark is not None:
            return self.error_mark
        return f"{stdout.strip()}\n{stderr.strip()}".strip() or status

    def _tags(self) -> tuple[str, ...]:
        return (self.open, self.close, self.result_open, self.result_close)


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
