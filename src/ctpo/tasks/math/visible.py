"""Which parts of a response are addressed to the reader: no thoughts, no programs, and no output of tools."""

from __future__ import annotations

import re

_MARK = re.compile(
    r"<(?P<close>/?)(?P<tag>think|thinking|tool_call|tool_response|tool_output|py|out)>"
    r"|(?P<fence>`{3,}|~{3,})(?P<info>[^\n`]{0,200})$",
    re.MULTILINE,
)
_THOUGHTS = ("think", "thinking")
_LANGUAGE = re.compile(r"[ \t]*[\w+#.-]*[ \t]*\r?")
_VISIBLE = re.compile(r"[^\n]")


def visible(text: str) -> str:
    """The text with blanks in place of what is hidden. Its length and its lines stay as they are.

    Hidden are thoughts (`<think>…</think>`, finished or not), code fences, tool calls and the output of tools. Without
    `<think>`, everything up to a `</think>` is a thought, because many chat templates put the opening tag into the
    prompt. The time is linear in the length of the text.

    Example:
        visible("<think>3</think>4")  # "                4"
    """
    spans = _hidden(text, 0)
    pieces: list[str] = []
    shown = 0
    for start, end in spans:
        pieces += text[shown:start], _VISIBLE.sub(" ", text[start:end])
        shown = end
    return "".join([*pieces, text[shown:]])


def _hidden(text: str, first: int) -> list[tuple[int, int]]:
    """The spans that are hidden, in order. Everything before `first` is hidden."""
    spans = [(0, first)] if first else []
    opened: re.Match[str] | None = None
    thought_end = 0
    for mark in _MARK.finditer(text, first):
        if opened is None:
            if mark["fence"] is not None:
                if _LANGUAGE.fullmatch(mark["info"]):
                    opened = mark
            elif not mark["close"]:
                opened = mark
            elif mark["tag"] in _THOUGHTS:
                spans = [(0, mark.end())]
        elif opened["fence"] is not None:
            if mark["close"] and mark["tag"] in _THOUGHTS:
                thought_end = mark.end()
            elif _ends_fence(text, opened, mark):
                spans.append((opened.start(), mark.end()))
                opened = None
        elif mark["close"] and mark["tag"] == opened["tag"]:
            spans.append((opened.start(), mark.end()))
            opened = None
    if opened is None:
        return spans
    if thought_end > opened.start():  # the fence was a part of the thought and was never closed
        return _hidden(text, thought_end)
    return [*spans, (opened.start(), len(text))]


def _ends_fence(text: str, opened: re.Match[str], mark: re.Match[str]) -> bool:
    fence = mark["fence"]
    if fence is None or fence[0] != opened["fence"][0] or len(fence) < len(opened["fence"]):
        return False
    line = text[max(0, mark.start() - 200) : mark.start()].rpartition("\n")[2]
    return not line.strip() and (not mark["info"].strip() or " " in mark["info"].strip())
