"""When two answers are the same: which differences of form, unit, order and name do not matter."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from ctpo.tasks.math import forms, regions, words
from ctpo.tasks.math.normal import OPEN_SET
from ctpo.tasks.math.shapes import (
    EMPTY,
    Congruence,
    Digits,
    Matrix,
    Named,
    Ratio,
    RealSet,
    Relation,
    Scalar,
    Sequence,
    Shape,
    is_sum_of_names,
    key,
    read,
    region,
    with_unit,
)
from ctpo.tasks.math.syntax import Node, Unreadable, number

_MOST_PAIRS = 200
_HUNDRED = number(100)


class Comparison:
    """Compares cleaned texts.

    Args:
        equal: whether two expressions are equal for all values of their variables, or None if that is unknown. It
            must not guess: a verdict "the same" rests on it alone.
        formula: the same for two texts that `shapes.read` cannot read and that have no words.
    """

    def __init__(
        self, equal: Callable[[Node, Node], bool | None], formula: Callable[[str, str], bool | None]
    ) -> None:
        self._equal = equal
        self._formula = formula

    def texts(self, reference: str, given: str) -> bool | None:
        """Whether two cleaned texts are equal answers."""
        if words.prose(reference) == words.prose(given):
            return True
        expected_near, reference = words.without_about(reference)
        near, given = words.without_about(given)
        if near and not expected_near and "." not in reference:
            return False  # "about 5" does not say that it is 5
        chosen = _choices(reference, given)
        if chosen is not None:
            return chosen == "same" or (self.texts(*chosen) if isinstance(chosen, tuple) else False)
        if re.fullmatch(r"\d{1,2}:\d\d", reference) and words.time_of_day(given):
            given = re.sub(r"[^\d:]", "", given)  # 6:30 may be 6:30 pm, as 5 may be 5 cm
        for kind in (words.letters, words.time_of_day, words.date):
            expected, answer = kind(reference), kind(given)
            if expected is not None and answer is not None:
                return expected == answer
        expected_shape, shape = read_or_none(reference), read_or_none(given)
        if expected_shape is None or shape is None:
            return self._formula(reference, given) if _is_formula(reference) and _is_formula(given) else False
        return self._same(expected_shape, shape)

    def _same(self, reference: Shape, given: Shape) -> bool | None:
        """Whether two shapes are equal answers; None if this cannot be decided here."""
        try:
            expected_region, answer_region = region(reference), region(given)
            if isinstance(reference, RealSet) or isinstance(given, RealSet):
                if expected_region is None or answer_region is None:
                    return False
                if isinstance(reference, RealSet) and isinstance(given, RealSet):
                    names = {reference.variable, given.variable} - {""}
                    if len(names) > 1:
                        return False
                return regions.equal(expected_region, answer_region)
        except regions.Undecided:
            return False
        reference, given = _without_brackets(reference), _without_brackets(given)
        if isinstance(reference, Named) or isinstance(given, Named):
            return self._named(reference, given)
        if isinstance(reference, Relation) or isinstance(given, Relation):
            return self._relations(reference, given)
        if isinstance(reference, Scalar) and isinstance(given, Scalar):
            return self._scalars(reference, given)
        if isinstance(reference, Matrix) or isinstance(given, Matrix):
            return self._matrices(reference, given)
        if isinstance(reference, Congruence) and isinstance(given, Congruence):
            return self._congruences(reference, given)
        if isinstance(reference, Ratio) and isinstance(given, Ratio):
            return self._ratios(reference, given)
        if isinstance(reference, Digits) or isinstance(given, Digits):
            return reference == given
        if isinstance(reference, Ratio | Congruence) or isinstance(given, Ratio | Congruence):
            return False
        return self._sequences(reference, given)

    def _named(self, reference: Shape, given: Shape) -> bool | None:
        if isinstance(reference, Named) and isinstance(given, Named):
            if reference.equation and given.equation:
                same = forms.proportional(_difference(*reference.equation), _difference(*given.equation))
                if same:
                    return True
            if _are_one_name(_plain_name(reference.name), _plain_name(given.name)):
                return self._same(reference.value, given.value)
            return False
        if isinstance(reference, Relation) or isinstance(given, Relation):
            return self._relations(reference, given)
        if isinstance(reference, Named):
            return self._same(reference.value, given)
        assert isinstance(given, Named)
        return self._same(reference, given.value)

    def _relations(self, reference: Shape, given: Shape) -> bool | None:
        pairs = []
        for shape in (reference, given):
            if isinstance(shape, Relation):
                pairs.append((shape.operator, shape.left, shape.right))
            elif isinstance(shape, Named) and shape.equation:
                pairs.append(("=", *shape.equation))
        if len(pairs) == 2:
            if pairs[0][0] != pairs[1][0]:
                return False
            one, other = (_difference(left, right) for _, left, right in pairs)
            return forms.proportional(one, other, positive=pairs[0][0] != "=")
        says_value = isinstance(given, Relation) and given.operator == "=" and is_sum_of_names(given.left)
        if says_value and isinstance(given, Relation) and isinstance(reference, Scalar):
            # m + n = 5 for 5: a sum of names says what the value is of
            return False if given.right.symbols() else self._scalars(reference, Scalar(given.right))
        return False

    def _scalars(self, reference: Scalar, given: Scalar) -> bool | None:
        if reference.node.has("plus_minus") or given.node.has("plus_minus"):
            return self._sequences(reference, given)
        names, other_names = reference.node.symbols(), given.node.symbols()
        if names != other_names:
            expected = with_unit(reference, spaced=True) if names - other_names else None
            answer = with_unit(given, spaced=False) if other_names - names else None
            if expected or answer:
                return self._scalars(expected or reference, answer or given)
        if reference.unit and given.unit and reference.unit != given.unit:
            return {reference.unit, given.unit} == {"£", "lb"} and self._values(reference.node, given.node)
        same = self._values(reference.node, given.node)
        if "%" not in (reference.unit, given.unit) or reference.unit == given.unit:
            return same
        if reference.unit == "%":
            part = Node("quotient", (reference.node, _HUNDRED))
            return same or self._values(part, given.node)
        value = forms.rational(reference.node)
        if same:
            return value is not None and abs(value) > 1  # 1% is not 1, and nobody writes 1800% as 18%
        return self._values(reference.node, Node("quotient", (given.node, _HUNDRED)))

    def _values(self, reference: Node, given: Node) -> bool | None:
        if reference.has("infinity") or given.has("infinity"):
            return _sign_of_infinity(reference) == _sign_of_infinity(given) != 0
        return self._equal(reference, given)

    def _matrices(self, reference: Shape, given: Shape) -> bool | None:
        expected, answer = _rows(reference), _rows(given)
        if expected is None or answer is None:
            return False
        if [len(row) for row in expected] != [len(row) for row in answer]:
            # A column may be written as a tuple.
            tuples = [shape for shape in (reference, given) if not isinstance(shape, Matrix)]
            column = expected if isinstance(reference, Matrix) else answer
            size = sum(map(len, expected))
            if len(tuples) != 1 or any(len(row) != 1 for row in column) or sum(map(len, answer)) != size:
                return False
            if len(column) != size or min(len(expected), len(answer)) != 1:
                return False
        pairs = zip(
            [cell for row in expected for cell in row], [cell for row in answer for cell in row], strict=True
        )
        return _all(self._same(*pair) for pair in pairs)

    def _congruences(self, reference: Congruence, given: Congruence) -> bool | None:
        if (reference.left is None) != (given.left is None):
            left: bool | None = True
        elif reference.left is None or given.left is None:
            left = True
        else:
            left = self._equal(reference.left, given.left)
        modulus, other = forms.rational(reference.modulus), forms.rational(given.modulus)
        residue, answer = forms.rational(reference.residue), forms.rational(given.residue)
        if modulus is None or residue is None or answer is None or modulus != other or modulus < 1:
            return False
        return left is True and ((residue - answer) / modulus).denominator == 1

    def _ratios(self, reference: Ratio, given: Ratio) -> bool | None:
        if len(reference.parts) != len(given.parts):
            return False
        if len(reference.parts) == 2 and any(
            re.fullmatch(r"\d\d", shape.texts[1]) for shape in (reference, given)
        ):
            return _all(
                self._equal(*pair) for pair in zip(reference.parts, given.parts, strict=True)
            )  # a time of day
        first, other = reference.parts[0], given.parts[0]
        if forms.rational(first) == 0 or forms.rational(other) == 0:
            return _all(self._equal(*pair) for pair in zip(reference.parts, given.parts, strict=True))
        crossed = [
            (Node("product", (a, other)), Node("product", (b, first)))
            for a, b in zip(reference.parts, given.parts, strict=True)
        ]
        return _all(self._equal(*pair) for pair in crossed)

    def _sequences(self, reference: Shape, given: Shape) -> bool | None:
        names, other_names = _names(reference), _names(given)
        if names is not None and other_names is not None:
            if names.keys() != other_names.keys():
                return False
            return _all(self._same(value, other_names[name]) for name, value in names.items())
        if names is not None or other_names is not None:
            values = names or other_names or {}
            plain = given if names is not None else reference
            items = _items(plain)
            opening = plain.opening if isinstance(plain, Sequence) else "set"
            if len(items) != len(values) or opening not in ("", "("):
                return False
            order = sorted(values, key=lambda name: (name.startswith("\\"), name))  # r before \\theta
            return _all(self._same(values[name], item) for name, item in zip(order, items, strict=True))
        kinds = {shape.opening if isinstance(shape, Sequence) else "" for shape in (reference, given)}
        expected, answer = _items(reference), _items(given)
        if len(expected) != len(answer):
            return False
        if kinds <= {"", OPEN_SET}:
            return self._matched(expected, answer)
        if isinstance(reference, Sequence) and isinstance(given, Sequence):
            # (1, 2) may be a point or an interval, and a list in the same order means the same.
            brackets = [(shape.opening, shape.closing) for shape in (reference, given)]
            points = {("", ""), ("(", ")"), ("⟨", "⟩")}
            if brackets[0] != brackets[1] and not points.issuperset(brackets):
                return False
            return _all(self._same(*pair) for pair in zip(expected, answer, strict=True))
        return False

    def _matched(self, expected: list[Shape], answer: list[Shape]) -> bool | None:
        """Whether the items are the same in any order."""
        keys, other_keys = [key(item) for item in expected], [key(item) for item in answer]
        if None not in keys and sorted(map(str, keys)) == sorted(map(str, other_keys)):
            return True
        left = list(answer)
        pairs = 0
        unclear = False
        for item in expected:
            for i, other in enumerate(left):
                pairs += 1
                if pairs > _MOST_PAIRS:
                    return False
                same = self._same(item, other)
                if same:
                    del left[i]
                    break
                unclear = unclear or same is None
            else:
                return None if unclear else False
        return True


def _choices(reference: str, given: str) -> str | tuple[str, str] | None:
    """ "same" or "different" for two choices, two texts that are to be compared instead, or None."""
    expected, answer = words.choice(reference), words.choice(given)
    if expected is not None and answer is None and re.fullmatch("[a-j]", words.plain_words(given)):
        answer = given.upper(), ""
    if expected is None and answer is None:
        return None
    if expected is None:
        assert answer is not None
        return (reference, answer[1]) if answer[1] else None
    if answer is None:
        return (expected[1], given) if expected[1] else None
    if expected[0] != answer[0]:
        return "different"
    return (expected[1], answer[1]) if expected[1] and answer[1] else "same"


def read_or_none(text: str) -> Shape | None:
    """The shape of a cleaned text, which may be a number in words; None if the text is none."""
    try:
        return read(text)
    except Unreadable:
        value = words.number_in_words(text)
        return None if value is None else Scalar(number(value))


def _is_formula(text: str) -> bool:
    """Whether the text has no words, so that computer algebra may read it."""
    without = re.sub(r"\\(?:begin|end)\{\w+\*?\}|\\(?!text)[A-Za-z]+", " ", text)
    return not re.search(r"\\text|[A-Za-z]{4}", without)


def _without_brackets(shape: Shape) -> Shape:
    """The only answer of a list or of a set: `{5}` is 5."""
    if isinstance(shape, Sequence) and len(shape.items) == 1 and shape.opening in ("", OPEN_SET):
        return shape if shape.items[0] == EMPTY else shape.items[0]
    return shape


def _are_one_name(one: str, other: str) -> bool:
    """Whether the names are the same, or both are y or a function of x."""
    functions = [re.fullmatch(r"[a-zA-Z]\(([a-z])\)", name) for name in (one, other)]
    if functions[0] and functions[1]:
        return functions[0][1] == functions[1][1]
    return one == other or ("y" in (one, other) and any(functions))


def _plain_name(name: str) -> str:
    return re.sub(r"[\s{}]|\\text", "", name)


def _difference(left: Node, right: Node) -> Node:
    return Node("sum", (left, Node("negative", (right,))))


def _sign_of_infinity(node: Node) -> int:
    if node.kind == "infinity":
        return 1
    return -1 if node.kind == "negative" and node.parts[0].kind == "infinity" else 0


def _rows(shape: Shape) -> list[list[Shape]] | None:
    """The rows of a matrix. Brackets of brackets are a matrix too, and a tuple is one row."""
    if isinstance(shape, Matrix):
        return [list(row) for row in shape.rows]
    if not isinstance(shape, Sequence) or shape.opening not in ("(", "[", "⟨"):
        return None
    inner = [item for item in shape.items if isinstance(item, Sequence) and item.opening == "["]
    if len(inner) == len(shape.items):
        return [list(row.items) for row in inner]
    return [list(shape.items)]


def _names(shape: Shape) -> dict[str, Shape] | None:
    """The values by their names, if each item of a list has a name of its own."""
    if not isinstance(shape, Sequence) or shape.opening not in ("", OPEN_SET, "("):
        return None
    named = {_plain_name(item.name): item.value for item in shape.items if isinstance(item, Named)}
    return named if shape.items and len(named) == len(shape.items) else None


def _items(shape: Shape) -> list[Shape]:
    """The items of a list, with both values of each `a ± b`; anything else is one item."""
    listed: list[Shape] = []
    for item in shape.items if isinstance(shape, Sequence) else (shape,):
        if isinstance(item, Scalar) and item.node.has("plus_minus"):
            listed += [Scalar(_with_sign(item.node, sign), item.unit, item.text) for sign in (1, -1)]
        else:
            listed.append(item)
    return listed


def _with_sign(node: Node, sign: int) -> Node:
    parts = tuple(_with_sign(part, sign) for part in node.parts)
    if node.kind != "plus_minus":
        return Node(node.kind, parts, node.value)
    positive = (node.value == "±") == (sign > 0)
    return parts[0] if positive else Node("negative", parts)


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    """False if one is False, None if one is None, and True otherwise."""
    unclear = False
    for verdict in verdicts:
        if verdict is False:
            return False
        unclear = unclear or verdict is None
    return None if unclear else True
