"""How a model's text calls Python, and how the interpreter's answer becomes text again."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Literal

Style = Literal["tags", "fenced", "native", "auto"]
STYLES: tuple[Style, ...] = ("tags", "fenced", "native", "auto")

SUCCESS = "ok"  # the sandbox's status of a program that ran to its end


@dataclass(frozen=True, kw_only=True)
class PythonTool:
    """The text protocol of a Python tool; running the program is the sandbox's work, not this object's.

    The model writes `open`, a program and `close`; the environment then appends what `render` returns, and
    the model goes on from there.
    """

    open: str = "<py>"
    """Tag after which the model's text is a program."""
    close: str = "</py>"
    """Tag that ends the program and makes it run."""
    result_open: str = "<out>"
    """Tag before the interpreter's output."""
    result_close: str = "</out>"
    """Tag after the interpreter's output."""
    deterministic: bool = True
    """Whether equal sources print equal text, so that a batch may run identical programs once."""
    max_calls: int = 8
    """Calls a completion may make; later ones are not run."""
    max_result_chars: int = 1024
    """Length in characters at which the rendered output is cut, tags not counted."""
    error_mark: str | None = "error"
    """What the model reads in place of a failed program's output; None shows stdout and stderr instead."""
    result_charset: str | None = None
    """Characters the model's vocabulary can write; any other becomes `substitute`. None allows all."""
    substitute: str = "?"
    """What stands for an unwritable character, and for a tag of this tool that a program printed."""
    style: Style = "tags"
    """How a chat model calls: `tags` as above, whatever the model; `fenced` with the same opening and closing,
    the output coming back as a tool message of the model's chat template where it has one (else between the
    result tags); `native` by the template's own tool calls; `auto`: native where the template has them, else
    fenced. `ctpo.rollout.chat` turns the last three into plain tags for the model at hand."""
    json_arguments: bool = False
    """Whether the text between the tags is a JSON tool call with the program as its `code` argument."""

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
        """Return the program in the text after the opening tag, up to the closing tag or the text's end.

        A JSON call that cannot be read is returned as it stands: running it gives the model the error to see.
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
        """Return the text that the environment appends after a call, result tags included.

        Args:
            status: the sandbox's verdict; "ok" means that the program ran to its end.
            stdout: what the program printed; shown without surrounding white space.
            stderr: shown only after a failure, and only where `error_mark` is None.

        Returns:
            `result_open + body + result_close`. The body has at most `max_result_chars` characters, holds
            none of the tool's own tags and no character outside `result_charset`, whatever was printed.
        """
        # Cut first, so that a flood of output costs nothing; no later line makes the body longer.
        body = self._message(status, stdout, stderr)[: self.max_result_chars]
        body = re.sub("|".join(map(re.escape, self._tags())), self.substitute, body)
        if self.result_charset is not None:
            body = "".join(c if c in self.result_charset else self.substitute for c in body)
        return self.result_open + body + self.result_close

    def example(self, problem: str, program: str, answer: str) -> tuple[dict[str, str], ...]:
        """Messages of a problem solved by one call: the program, what it prints, and the answer in a sentence."""
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
    deterministic=False,  # nothing keeps a program from drawing random numbers
)
"""The Python tool of a chat model: its own tool calls where it has them, fenced blocks elsewhere."""
