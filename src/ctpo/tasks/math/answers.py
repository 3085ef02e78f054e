"""Extracting the final answer from a text."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import deque

from ctpo.tasks.math.boxes import LONGEST, Box, boxes
from ctpo.tasks.math.visible import visible

# Every repetition below has a limit, so each match takes a bounded time and a search takes time linear in the text.
_STATEMENT = re.compile(
    r"(?P<tag><answer>)"
    r"|(?P<hashes>(?<!\#)\#{4}(?!\#)[ \t]{0,40})"
    r"|(?P<words>\b(?:answers?|respuesta|réponse|antwort|ответ)\b|答案|答え|정답)",
    re.IGNORECASE,
)
_IS = re.compile(
    r"(?:[ ](?:to|for|of)[ ][^\n.:=]{1,80}?)?[\s*_\"')\]]{0,6}"
    r"(?:(?:is|are|was|equals|becomes|(?:would|should|will|must)[ ]be|es|est|ist|lautet|は)\b|是|为|為|[:：=])"
    r"[\s*_:：=]{0,40}"
    r"(?:(?:therefore|thus|then|hence|simply|just|exactly|indeed|equal[ ]to|given[ ]by|be)\b[\s*_:：,]{0,20}){0,3}",
    re.IGNORECASE,
)
_HEADING = re.compile(r"[*_]{0,3}[ \t]{0,20}\n\s{0,20}")
_HEADING_BEFORE = re.compile(r"(?:^|\n)[ \t#*_]{1,20}(?:the[ ])?(?:final|correct)?[ ]?$", re.IGNORECASE)
_NO_STATEMENT = re.compile(
    r"(?:correct|right|wrong|incorrect|as|given|obtained|found|shown|in|that|to|above|below|clear|unique|boxed|here"
    r"|what|reasonable|verified|confirmed|consistent|expected|required|valid|supposed|asked|see)\b",
    re.IGNORECASE,
)
_END = re.compile(
    r"\$(?:[^$\n.]|\.(?!\s)){1,500}\$|\\\((?:[^\\\n]|\\(?!\))){0,500}\\\)|\\[.!;,:]"
    r"|(?P<end>\n|[.!?](?=[\s*_\"')\]]|$)|;(?=\s{1,3}(?!or\b|and\b)[A-Za-z]{2})|[。！？；]|</|,?\s(?:which|because|since|where|hopefully)\b"
    r"|,\s(?:so|as|therefore|thus|hence|I|and\s(?:we|I|this|it))\b|\bI\shope\b)"
)
_DISPLAY = (("\\[", "\\]"), ("$$", "$$"))
_NUMBER_FIRST = re.compile(
    r"(?:\\[(\[]|[*$\s]){0,6}[-+−–±]?(?:\\?[$€£¥₹]|\\pm)?\s?[-+−–]?"
    r"(?:\.?\d|\\(?:[dt]?frac|sqrt|pi|infty|binom)(?![A-Za-z])|[√π∞])"
)
_HEADING_NUMBER = re.compile(
    r"\d+(?:\.\d+)*(?:\s?[.):]\s+\S|st\b|nd\b|rd\b|th\b|\s+[A-Z]\w*\s+\w+|(?:\s+[A-Za-z]+){4})"
)
_JOINT = re.compile(r"(?:\\[()\[\],; ]|[$\s,;&*]|and\b|or\b|[A-Za-z]\s{0,3}=){0,40}")
_VARIABLE = re.compile(r"(?:^|[^A-Za-z\\])(?P<name>[A-Za-z])\s{0,3}=[\s$]{0,4}(?:\\[(\[])?\s{0,3}$")
_MOST_STATEMENTS = 1_000  # tried, from the last on; only a text made for it has more that state nothing
_TRAILING = ".*。 \t\r\n"


def final_answer(text: str) -> str | None:
    """The answer that the text states last, or None if it states none.

    A statement is a box, `<answer>…</answer>`, what follows "answer is" or "Answer:", or a number after `####`. Boxes
    that only "and", "or" or a comma parts are one list. Thoughts, programs and the output of tools state nothing. If
    the last statement is an unfinished box, there is no answer. A bare number somewhere is not an answer.

    The time is linear in the length of the text.

    Example:
        final_answer(r"The answer is 12. No, \\boxed{13}")  # "13"
    """
    shown = visible(text)
    every = boxes(shown)
    starts = [box.start for box in every]
    last_box = len(every) - 1
    for mark in _last_first(shown):
        before = bisect_right(starts, mark.start()) - 1
        if before >= 0 and every[before].content is not None and mark.start() < every[before].end:
            continue  # inside of a box
        if before < last_box:
            break  # the last box comes later
        stated = _stated(shown, mark)
        if stated is None:
            continue
        unfinished = (
            before >= 0 and every[before].content is None and _is_near(shown, every[before], mark.start())
        )
        return None if unfinished else _accepted(stated)
    return _boxed(shown, every)


def reference_answer(text: str) -> str:
    """The answer in the text of a dataset's answer column: its boxed or `####` part if there is one, or all of it.

    Example:
        reference_answer("Two and three are five. #### 5")  # "5"
    """
    boxed = _boxed(text, boxes(text))
    if boxed is not None:
        return boxed
    after_hashes = text.rpartition("####")[2].strip().partition("\n")[0].strip()
    return after_hashes or text.strip()


def tagged_answer(text: str) -> str | None:
    """The text between the last `<answer>` and its `</answer>`, unchanged, or None if the last one is unfinished.

    Tags inside of thoughts, programs and the output of tools do not count. The time is linear in the text's length.
    """
    shown = visible(text)
    start = shown.rfind("<answer>")
    if start < 0:
        return None
    begins = start + len("<answer>")
    end = text.find("</answer>", begins)
    return None if end < 0 else text[begins:end]


def _last_first(shown: str) -> list[re.Match[str]]:
    return list(deque(_STATEMENT.finditer(shown), maxlen=_MOST_STATEMENTS))[::-1]


def _stated(shown: str, mark: re.Match[str]) -> str | None:
    """What follows the mark, "" if it is unfinished, or None if the mark states nothing."""
    begins = mark.end()
    if mark["tag"]:
        content, closed, _ = shown[begins : begins + LONGEST + 10].partition("</answer>")
        return content if closed else ""
    window = shown[begins : begins + LONGEST + 1]
    if mark["hashes"]:
        line = window.partition("\n")[0]
        states = _NUMBER_FIRST.match(line) and not _HEADING_NUMBER.match(line.lstrip("* "))
        return line if states else None
    verb = _IS.match(window)
    if verb is None:
        heading = _HEADING.match(window)
        if heading is None or not _HEADING_BEFORE.search(shown[max(0, mark.start() - 40) : mark.start()]):
            return None
        window = window[heading.end() :]
    else:
        window = window[verb.end() :]
    return _sentence(window)


def _sentence(window: str) -> str | None:
    if _NO_STATEMENT.match(window):
        return None
    for opening, closing in _DISPLAY:
        if window.startswith(opening):
            content, closed, _ = window[2:].partition(closing)
            return content if closed else ""
    end = next((found.start() for found in _END.finditer(window) if found["end"] is not None), len(window))
    sentence = window[:end].strip("* \t\r\n")
    return sentence if sentence.strip(_TRAILING) else None


def _is_near(shown: str, box: Box, position: int) -> bool:
    return position - box.start <= LONGEST and "\n\n" not in shown[box.start : position]


def _accepted(stated: str) -> str | None:
    answer = stated.strip()
    if not answer.endswith(".."):  # "5..." is not 5
        answer = answer.strip("*`").rstrip(_TRAILING)
    return answer if answer and len(answer) <= LONGEST else None


def _boxed(shown: str, every: list[Box]) -> str | None:
    """The content of the last box, with that of the boxes that form a list with it."""
    if not every or every[-1].content is None:
        return None
    if len(every) > 1 and every[-2].content is None and _is_near(shown, every[-2], every[-1].start):
        return None
    listed = [every[-1]]
    for box in every[-2::-1]:
        gap = shown[box.end : listed[-1].start] if listed[-1].start - box.end <= 60 else "no list"
        if (
            box.content is None
            or len(listed) == 20
            or not _JOINT.fullmatch(gap)
            or not re.search("and|or|,", gap)
        ):
            break
        listed.append(box)
    if len(listed) == 1:
        return _accepted(every[-1].content)
    contents = []
    for box in reversed(listed):
        name = _VARIABLE.search(shown[max(0, box.start - 30) : box.start])
        content = (box.content or "").strip()
        contents.append(f"{name['name']}={content}" if name and "=" not in content else content)
    return _accepted(", ".join(dict.fromkeys(contents)))
