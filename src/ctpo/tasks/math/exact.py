"""Comparing answers exactly, in this process and in little time.

Nothing is rounded: a decimal equals a fraction only if it is that fraction. Where the equality of two answers cannot be
decided here, the verdict is None. Where it is doubtful what an answer means, the verdict is "wrong".
"""

from __future__ import annotations

from typing import Literal

from ctpo.tasks.math import floats, forms, words
from ctpo.tasks.math.comparison import Comparison, read_or_none
from ctpo.tasks.math.normal import clean
from ctpo.tasks.math.shapes import key, read
from ctpo.tasks.math.syntax import OPERATOR, Node, Unreadable

Verdict = Literal["right", "wrong", "unparsable"]
LONGEST = 2_000
"""How many characters an answer may have to be read. A longer one is right only if it is the reference, unchanged."""


def compare(reference: str, given: str) -> Verdict | None:
    """The verdict on the given answer, or None if `symbolic.compare` has to decide.

    It is "unparsable" if no reader of this package knows one of the answers, and the texts differ.

    Example:
        compare("2^{2024}", "4^{1012}")  # "right"
        compare("1/3", "0.333")          # "wrong"
    """
    if max(len(reference), len(given)) > LONGEST:
        return "right" if reference == given else "wrong"
    texts = clean(reference), clean(given)
    same = _COMPARISON.texts(*texts)
    if same is None:
        known = all(OPERATOR.search(text) or read_or_none(text) for text in texts)
        return None if known else "unparsable"
    return "right" if same else "wrong"


def canonical(answer: str) -> str:
    """A key of the answer. Equal keys mean equal answers; different keys may belong to equal answers, too.

    The key is cheap: it takes one reading of the answer and no comparison.

    Example:
        canonical("\\\\frac{1}{2}") == canonical("0.5")  # True
    """
    if len(answer) > LONGEST:
        return answer
    text = clean(answer)
    try:
        found = key(read(text))
    except Unreadable:
        found = None
    return words.prose(text) if found is None else found


def _equal(one: Node, other: Node) -> bool | None:
    same = forms.equal(one, other)
    return False if same is None and floats.differ(one, other) else same


_COMPARISON = Comparison(_equal, lambda reference, given: None)
