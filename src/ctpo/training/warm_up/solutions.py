"""Worked solutions as short reasoning with programs.

A solution shows its calculations in one of two ways:

- calculator annotations as in GSM8K, `She has 48/2 = <<48/2=24>>24 clips.` All of them become one program. The prose
  around each becomes a comment above its line, and a number that an earlier line computed becomes that line's variable.
- fenced blocks of Python. They are kept, with the prose between them. Blocks of output are left out.

Values that a solution states are left out of the prose. The model should reason in words and let Python calculate.
"""

from __future__ import annotations

import builtins
import keyword
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal, DecimalException
from typing import Final

from ctpo.tasks.fences import first_block

_LONGEST: Final = 20_000
"""Characters of a solution that is read. A longer one has no place in a row anyway."""
_MOST_LINES: Final = 64
"""Calculations of a solution that become lines of a program. One with more is no short reasoning."""
_ANNOTATION: Final = re.compile(r"<<(?P<formula>[^<>=]{1,200})=(?P<more>[^<>]{0,200})>>")
_NUMBER: Final = re.compile(r"(?<![\w.])(?:\d+(?:\.\d*)?|\.\d+)(?![\w])")
_PLAIN: Final = re.compile(r"(?<![\w.])(?:\d(?:[\d,]*\d)?(?:\.\d+)?|\.\d+)")
"""A number as prose writes it."""
_FORMULA: Final = re.compile(r"[\d.+\-*/() ]+")
_OPERATOR: Final = re.compile(r"[+\-*/]")
_STATED: Final = re.compile(r"\s*[$€£]?\s*-?[\d,]*\.?\d+\s*%?")
"""The value that the text repeats after an annotation."""
_TAIL: Final = re.compile(r"(?:[\d\s.,+\-*/×÷()%$€£=]|(?<=[\d\s$])x(?=[\d\s$]))+$")
"""A formula at the end of a text."""
_WORD: Final = re.compile(r"[A-Za-z]{3,14}")
_STOP: Final = frozenset(
    "also and are been but can does each every first for from had has have her him his how into its more need needs "
    "since she than that the their them then there therefore these they this thus was were when which will with "
    "would".split()
)
"""Words that say nothing in the name of a variable."""
_TOTAL: Final = ("total", "altogether", "remaining", "left")
"""Words that name a value before all others."""
_REACH: Final = 200
"""Characters before an annotation in which its formula is looked for."""
_LONGEST_FORMULA: Final = 90
"""Characters of the prose that may be one formula with words in it, such as "3 large stickers + 42 stickers"."""
_OUTPUT: Final = re.compile(r"```(?:output|text)?[ \t]*\n.*?(?:\n```|\Z)", re.DOTALL)
_STATEMENT: Final = re.compile(r"^.*(?:####|\\boxed|<answer>).*$", re.MULTILINE)
_DECIMALS: Final = 2


@dataclass(frozen=True, kw_only=True)
class Step:
    """One turn of a solution: what is written before a call, and the program that is called."""

    text: str
    program: str


def steps_of(solution: str, problem: str = "") -> list[Step]:
    """The steps of a worked solution; none if it holds neither programs nor annotations that can be used.

    Args:
        solution: the text.
        problem: its problem. A number that stands there is not taken for an earlier result without need.
    """
    text = solution[:_LONGEST]
    if first_block(text) is not None:
        return _fenced(text)
    program = _program(text.rpartition("\n####")[0] or text, problem)
    return [] if program is None else [Step(text="", program=program)]


def _fenced(text: str) -> list[Step]:
    steps: list[Step] = []
    while (block := first_block(text)) is not None:
        before = _STATEMENT.sub("", _OUTPUT.sub("", text[: block.start])).strip()
        if not block.closed:
            break
        if block.program.strip():
            steps.append(Step(text=before, program=block.program.strip("\n")))
        text = text[block.end :]
    return steps


@dataclass(frozen=True, kw_only=True)
class _Line:
    name: str
    value: Decimal | None
    """What the annotation says that it comes to."""


def _program(solution: str, problem: str) -> str | None:
    """One program of all annotated calculations, which prints the last value; None if one cannot be used."""
    if len(_ANNOTATION.findall(solution)) > _MOST_LINES:
        return None
    known: list[_Line] = []
    unused: set[str] = set()
    given = {_decimal(each) for each in _NUMBER.findall(problem.replace(",", ""))}
    spread = Counter(word for line in solution.split("\n") for word in set(_telling(line)))
    code: list[str] = []
    remarks: list[str] = []
    for line in solution.split("\n"):
        marks = list(_ANNOTATION.finditer(line))
        if not marks:
            if line.strip() and not any(sign in line for sign in "=<>"):
                remarks.append(line)
            continue
        prose, place, names = "", 0, []
        formulas: list[str] = []
        for mark, following in zip(marks, [*marks[1:], None], strict=True):
            formula = _formula(mark["formula"])
            if formula is not None and not _OPERATOR.search(
                formula
            ):  # a bare value: the prose may have the formula
                end = line[place : mark.start()][-_REACH:]
                formula = _formula((_TAIL.search(end) or [""])[0].strip(" =$€£"))
            if formula is None or not _OPERATOR.search(formula):
                return None
            before = _without_formula(line[place : mark.start()], formula)
            stated = _STATED.match(line, mark.end())
            place = stated.end() if stated else mark.end()
            after = line[place : following.start() if following else len(line)]
            written = _NUMBER.sub(lambda number: _operand(number[0], known, unused, given), formula)
            prose += before
            name = _name(before + after, after, spread, [each.name for each in known])
            known.append(_Line(name=name, value=_decimal(mark["more"].rpartition("=")[2])))
            unused.add(name)
            formulas.append(f"{name} = {_spaced(written)}")
            names.append(name)
        remark = _tidy(" ".join([*remarks, prose + line[place:]]))
        remarks = []
        earlier = [each for each in known if each.name not in names]
        if remark:
            code.append(f"# {_without_results(remark, earlier, given)}")
        code += formulas
    if not known:
        return None
    return "\n".join([*code, f"print(round({known[-1].name}, {_DECIMALS}))"])


def _formula(text: str) -> str | None:
    """The formula of an annotation as Python; None if it holds more than arithmetic."""
    text = re.sub(r"[$€£,\s]", "", text)
    text = re.sub(r"(?<=[\d)])[x×](?=[\d(.])", "*", text).replace("÷", "/")
    text = re.sub(r"((?:\d+(?:\.\d*)?|\.\d+))%", lambda part: format(Decimal(part[1]) / 100, "f"), text)
    text = re.sub(r"(?<![\d.])0+(?=\d)", "", text)
    text = re.sub(r"(?<!\d)\.(?=\d)", "0.", text)
    return text if _FORMULA.fullmatch(text) and re.search(r"\d", text) and "**" not in text else None


def _spaced(formula: str) -> str:
    return re.sub(r"(?<=[\w)])([+\-*/]+)(?=[\w(.-])", r" \1 ", formula)


def _operand(number: str, known: Sequence[_Line], unused: set[str], given: set[Decimal | None]) -> str:
    """The number, or the variable of the earlier line that computed it.

    A result is mostly used once. So one that was not used yet comes first, then a number of the problem.
    """
    value = _decimal(number)
    same = [line.name for line in known if line.value == value]
    fresh = [name for name in same if name in unused]
    if not same or (not fresh and value in given):
        return number
    name = (fresh or same)[-1]
    unused.discard(name)
    return name


def _without_formula(before: str, formula: str) -> str:
    """The prose before an annotation without the formula that it ends with, words between its numbers included."""
    kept, end = before[:-_REACH], before[-_REACH:]
    place, whole = len(end), True
    for number in reversed(_NUMBER.findall(formula)):
        spots = [each for each in _PLAIN.finditer(end, 0, place) if _decimal(each[0]) == _decimal(number)]
        if not spots or len(end) - spots[-1].start() > _LONGEST_FORMULA:
            whole = False
            break
        place = spots[-1].start()
    if whole and re.search(r"[+\-*/×÷x=]", end[place:]):
        end = end[:place]
    return kept + _TAIL.sub(" ", end)


def _without_results(remark: str, known: Sequence[_Line], given: set[Decimal | None]) -> str:
    """The remark with variables in place of earlier results, which the model has not seen when it writes this."""
    names: dict[Decimal | None, str] = {
        line.value: line.name for line in known if line.value is not None and line.value not in given
    }
    return re.sub(
        r"[$€£]?(?<![\w.])\d(?:[\d,]*\d)?(?:\.\d+)?(?![\w%])",
        lambda number: names.get(_decimal(number[0]), number[0]),
        remark,
    )


def _name(line: str, after: str, spread: Mapping[str, int], taken: Sequence[str]) -> str:
    """A name for a value: what is special about its line, and then what it counts.

    Args:
        line: the prose of the line.
        after: the part of it that follows the value; what it counts stands first there.
        spread: the number of lines in which each word of the solution stands.
        taken: the names of earlier lines.
    """
    end = re.search(r"[.,;:!?]", after)
    unit = _telling(after[: end.start()] if end else after)[:1]
    others = [word for word in _telling(line) if word not in unit]
    special = [word for word in others if word in _TOTAL][:1] or sorted(
        others, key=lambda word: spread[word]
    )[:1]
    name = "_".join(special + unit) or "value"
    if keyword.iskeyword(name) or hasattr(builtins, name):
        name += "_value"
    number, unique = 1, name
    while unique in taken:
        number += 1
        unique = f"{name}{number}"
    return unique


def _telling(text: str) -> list[str]:
    words = [word.lower() for word in _WORD.findall(text) if word.isascii()]
    return [word for word in words if word not in _STOP]


def _tidy(text: str) -> str:
    text = " ".join(text.replace("#", " ").split())
    text = re.sub(r"\s+(?=[.,;:!?])", "", text)
    text = re.sub(r"\(\s*\)|[=*/+]+(?=\s|$)|\$(?=\s|$|[.,])", "", text)
    return " ".join(text.split()).strip(" ,;:=-")


def _decimal(text: str) -> Decimal | None:
    try:
        return Decimal(re.sub(r"[$€£,\s]", "", text)).normalize()
    except DecimalException:  # no number, or one too large
        return None
