"""What an answer as a whole is: a number with a unit, a list, a set, an interval, an equation, a matrix, or a text."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ctpo.tasks.math import floats, forms, regions
from ctpo.tasks.math.normal import CLOSE_SET, OPEN_SET
from ctpo.tasks.math.regions import Region
from ctpo.tasks.math.syntax import GREEK, Node, Unreadable, number, read_expression, read_prefix
from ctpo.tasks.math.units import CURRENCY_SIGNS, unit
from ctpo.tasks.math.words import SCALES, number_in_words

_DEEPEST = 10
_DEEPEST_BRACKETS = 30
_MOST_PIECES = 20  # of a chain of relations
_MOST_ITEMS = 60
_OPENING, _CLOSING = "([{" + OPEN_SET, ")]}" + CLOSE_SET


@dataclass(frozen=True)
class Scalar:
    """An expression with the one spelling of its unit, or "" without one."""

    node: Node
    unit: str = ""
    text: str = ""


@dataclass(frozen=True)
class Named:
    """`name = value`. `equation` holds both sides if they are expressions."""

    name: str
    value: Shape
    equation: tuple[Node, Node] | None = None


@dataclass(frozen=True)
class Sequence:
    """Items with the brackets around them. Without brackets they are a list of answers, whose order means nothing."""

    items: tuple[Shape, ...]
    opening: str = ""
    closing: str = ""


@dataclass(frozen=True)
class Matrix:
    rows: tuple[tuple[Shape, ...], ...]


@dataclass(frozen=True)
class Relation:
    """An equation, or an inequality with the operator < or <=."""

    operator: str
    left: Node
    right: Node


@dataclass(frozen=True)
class RealSet:
    region: Region
    variable: str = ""


@dataclass(frozen=True)
class Congruence:
    left: Node | None
    residue: Node
    modulus: Node


@dataclass(frozen=True)
class Ratio:
    parts: tuple[Node, ...]
    texts: tuple[str, ...]


@dataclass(frozen=True)
class Digits:
    """A number in another base, as its digits."""

    digits: str
    base: int


Shape = Scalar | Named | Sequence | Matrix | Relation | RealSet | Congruence | Ratio | Digits

EMPTY = Sequence((), OPEN_SET, CLOSE_SET)
_BASES = "two three four five six seven eight nine ten eleven twelve".split()
_DECORATIONS = ("angle", "overline", "vec", "hat", "bar", "triangle")
_NAME = re.compile(
    r"(?:\\(?:" + "|".join(_DECORATIONS) + r")\s?\{?)?(?:\\(?:[A-Za-z]+)|[A-Za-z]{1,3})\}?"
    r"(?:_(?:\{[^{}]{1,20}\}|\w))?'{0,2}(?:\^\{-1\})?\s?(?:\([^()=<>]{1,20}\))?"
)
_WORDS_NAME = re.compile(r"(?:\\text\{[^{}]{1,80}\}|[A-Za-z]{2,20}(?: [A-Za-z]{1,20}){0,4})")
_TUPLE_OF_NAMES = re.compile(r"\(\s?(?:[A-Za-z]|\\[a-z]{2,8})(?:\s?,\s?(?:[A-Za-z]|\\[a-z]{2,8})){1,7}\s?\)")
_RELATION = re.compile(r"\\(?:le|ge|ne|in|equiv|approx|sim)(?![A-Za-z])|<=|>=|!=|==|[=<>]")
_SET_OPERATION = re.compile(r"\\(?:cup|cap|setminus)(?![A-Za-z])")
_SEPARATOR = re.compile(
    r"(?P<word>\\text\{[\s,;]*(?P<in_text>and|or)[\s,]*\}|(?<![A-Za-z\\])(?P<plain>and|or)(?![A-Za-z])"
    r"|\\(?P<logic>vee|wedge)(?![A-Za-z]))|[,;]|\\\\"
)
_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?:,\d{3})+(?![\d,])", re.ASCII)
_REALS = re.compile(
    r"\\mathbb\s?\{?\s?R\s?\}?|(?:\\text\{\s?)?(?:the set of )?all (?:the )?reals?"
    r"(?: numbers?)?(?:\s?\})?",
    re.IGNORECASE,
)
_EMPTY = re.compile(
    r"\\emptyset|(?:\\text\{\s?)?(?:the |there (?:is|are) )?"
    r"(?:empty set|no (?:real )?solutions?(?: exists?)?)(?:\s?\})?",
    re.IGNORECASE,
)
_MATRIX = re.compile(r"\\begin\{(?:[pbB]?matrix|smallmatrix|array)\}(?:\{[lcr| ]*\})?(.*)\\end\{(\w+)\}")
_DIGITS = re.compile(
    r"[({]?(\d[0-9A-Za-z]*)[)}]?\s?(?:_\s?(?:\{\s?(?:\\text\{)?\s?\(?(\w+)\)?\s?\}?\s?\}|(?:\\text\{\s?)(\w+)\s?\}|(\d))"
    r"|\s?(?:\\text\{\s?)?(?:in )?base(?:\s?\})?[ -]?(\w+)\s?\}?|\\text\{\s?\(?(?:in )?base[ -](\w+)\)?\s?\})"
)
_CONGRUENCE = re.compile(
    r"(?:(?P<left>.{1,100}?)\\equiv)?(?P<residue>.{1,100}?)\s?"
    r"(?:\\pmod\s?(?P<a>\{.{1,40}\}|\S{1,40})|\(\s?(?:\\mod|\\bmod|mod|\\text\{\s?mod\s?\})\s?(?P<b>.{1,40})\))"
)
_MODULO = re.compile(
    r"(?P<left>.{1,100}?)\\equiv(?P<residue>.{1,100}?)\s?(?:\\mod|\\bmod|\bmod)\s?(?P<a>.{1,40})"
)
_ELLIPSES = ("\\ldots", "...")
_STATED = re.compile(
    r"(?:\\text\{\s?)?(?:exactly|(?:the )?(?:final )?answer(?: is|:))(?:\s?\}\s?|\s)",
    re.IGNORECASE,
)
_MONEY = re.compile(r"([-+]?)\s?(?:\\?([" + CURRENCY_SIGNS + r"]))\s?([-+]?)(?=[\s\d.\\({])")


def read(text: str, depth: int = 0) -> Shape:
    """The shape of a cleaned text.

    Raises:
        Unreadable: if the text is none of the shapes.
    """
    text = text.strip()
    if text in _ELLIPSES:
        return Scalar(Node("symbol", value="..."))
    if not text or depth > _DEEPEST or (depth == 0 and _nesting(text) > _DEEPEST_BRACKETS):
        raise Unreadable("empty or too deep")
    wrapped = re.fullmatch(r"\\text\s?\{([^{}]*)\}", text)
    if wrapped:
        return read(wrapped[1], depth + 1)
    stated = _STATED.match(text)
    if stated:
        return read(text[stated.end() :], depth + 1)
    if _EMPTY.fullmatch(text):
        return EMPTY
    if _REALS.fullmatch(text):
        return RealSet(regions.REALS)
    system = re.fullmatch(r"\\begin\{(?:cases|aligned)\}([^&]*)\\end\{(?:cases|aligned)\}", text)
    if system:
        return read(system[1].strip().removesuffix("\\\\"), depth + 1)
    for reader in (_digits, _congruence, _matrix):
        shape = reader(text, depth)
        if shape is not None:
            return shape
    parts, words = split(text, inside=False)
    if len(parts) > 1:
        return _listed(parts, words, depth)
    if _RELATION.search(text):
        pieces, operators = _split_at(_RELATION, text)
        if operators:
            return _related(pieces, operators, depth)
    text = re.sub(r"(?<=[\])])\s?U\s?(?=[\[(])", r"\\cup ", text)
    text = re.sub(r"(?<=R\})\s?-\s?(?=[" + OPEN_SET + r"\[(])", r"\\setminus ", text)
    pieces, operators = _split_at(_SET_OPERATION, text)
    if operators:
        return _combined(pieces, operators, depth)
    bracketed = _bracketed(text, depth)
    if bracketed is not None:
        return bracketed
    ratio = _ratio(text)
    return ratio if ratio is not None else scalar(text)


def scalar(text: str) -> Scalar:
    """An expression, perhaps with a unit.

    Raises:
        Unreadable: if the text is none.
    """
    currency = ""
    rest = text
    money = _MONEY.match(text)
    if money:
        currency = unit(money[2]) or ""
        rest = money[1] + money[3] + text[money.end() :]
    node, rest = read_prefix(rest)
    rest = rest.strip()
    scale = re.match(r"(?:\\text\{\s?)?(hundred|thousand|million|billion|trillion|dozen)\b\s?(\})?", rest)
    if scale and (scale[0].startswith("\\") == bool(scale[2]) or scale[0].startswith("\\")):
        node = Node("product", (node, number(SCALES[scale[1]])))
        left_open = scale[0].startswith("\\") and not scale[2]
        rest = ("\\text{" if left_open else "") + rest[scale.end() :].strip()
    rest = rest.strip(" .,")
    aside = re.fullmatch(r"(?:\\text\{\s?)?\((?:\\text\{)?([^()]{1,80}?)\}?\)(?:\s?\})?", rest)
    if aside:
        value = number_in_words(aside[1])
        if value is not None:
            if forms.equal(node, number(value)) is not True:
                raise Unreadable("two different numbers")
            rest = ""
        else:
            rest = aside[1]
    if not rest:
        return Scalar(node, currency, text)
    measured = unit(rest)
    plain = re.fullmatch(r"([-+\d., ]*\d) ?([A-Za-z].*)", text) if measured is None else None
    if plain:  # 60 km per hour, where the letters of km were read as variables
        node, measured = read_expression(plain[1]), unit(plain[2])
    if measured is None or (currency and measured != currency and not measured.startswith(currency + "*")):
        raise Unreadable(f"{rest[:20]!r} is no unit")
    return Scalar(node, measured, text)


def with_unit(shape: Scalar, spaced: bool) -> Scalar | None:
    """The scalar with its last letters read as a unit: 18 m for `18m`, which was read as a product of 18 and m.

    With `spaced`, one letter alone is a unit only after a space.
    """
    noun = shape.unit.startswith("noun:")
    if shape.unit and not noun:
        return None
    match = re.fullmatch(
        r"(.*?[\d)}])(\s?)((?:[A-Za-z]|\\text\{)[^\d]*(?:\^\s?\{?\d\}?)?[A-Za-z/]*)", shape.text
    )
    if match is None or (spaced and not match[2] and len(match[3]) == 1):
        return None
    measured = unit(match[3])
    if measured is None or measured.startswith("noun:") != noun:
        return None
    if len(match[3]) == 1 and match[3] not in "mshgL":
        return None
    try:
        return Scalar(read_expression(match[1]), measured, shape.text)
    except Unreadable:
        return None


def split(text: str, inside: bool) -> tuple[list[str], set[str]]:
    """The parts between commas, "and" and "or" outside of brackets, and which of these words were there.

    A comma that parts thousands parts nothing. Inside of brackets it does so only if a group starts with 0.
    """
    thousands: set[int] = set()
    for number_text in _THOUSANDS.finditer(text):
        if not inside or re.search(",0", number_text[0]):
            thousands.update(i for i in range(*number_text.span()) if text[i] == ",")
    parts: list[str] = []
    words: set[str] = set()
    begins = 0
    for match in _outside(_SEPARATOR, text):
        if match.start() in thousands:
            continue
        part = text[begins : match.start()].strip()
        if part or not match["word"] or not parts:  # not the comma of ", and"
            parts.append(part)
        if match["word"]:
            logic = {"vee": "or", "wedge": "and"}.get(match["logic"] or "", "")
            words.add(match["in_text"] or match["plain"] or logic)
        else:
            words.add(match[0])
        begins = match.end()
    parts.append(text[begins:].strip())
    if len(parts) > _MOST_ITEMS or (len(parts) > 1 and not all(parts)):
        raise Unreadable("an empty item, or too many")
    return parts, words


def region(shape: Shape) -> Region | None:
    """The shape as a set of reals, or None if it is none."""
    if isinstance(shape, RealSet):
        return shape.region
    if not isinstance(shape, Sequence):
        return None
    if shape == EMPTY:
        return regions.NOTHING
    nodes = [item.node for item in shape.items if isinstance(item, Scalar) and not item.unit]
    if len(nodes) < len(shape.items) or any(node.symbols() or node.has("plus_minus") for node in nodes):
        return None
    try:
        if shape.opening == OPEN_SET:
            return regions.union(*(regions.bounded("=", node) for node in nodes))
        if len(nodes) == 2 and shape.opening in ("(", "[") and shape.closing in (")", "]"):
            return regions.interval(nodes[0], nodes[1], shape.opening == "[", shape.closing == "]")
    except regions.Undecided:  # the point (2, -3), or a set of complex numbers
        return None
    return None


def _outside(pattern: re.Pattern[str], text: str) -> list[re.Match[str]]:
    """The matches outside of all brackets."""
    depth = 0
    found = []
    at = 0
    while at < len(text):
        match = pattern.match(text, at) if depth == 0 else None
        if match:
            found.append(match)
            at = match.end()
            continue
        if text.startswith((r"\begin", r"\langle", r"\lfloor", r"\lceil"), at):
            depth += 1
        elif text.startswith((r"\end", r"\rangle", r"\rfloor", r"\rceil"), at):
            depth -= 1
        elif text[at] in _OPENING:
            depth += 1
        elif text[at] in _CLOSING:
            depth -= 1
            if depth < 0:
                raise Unreadable("a bracket that was not opened")
        at += 1
    return found


def _split_at(pattern: re.Pattern[str], text: str) -> tuple[list[str], list[str]]:
    pieces, operators, begins = [], [], 0
    for match in _outside(pattern, text):
        pieces.append(text[begins : match.start()].strip())
        operators.append(match[0])
        begins = match.end()
    if len(operators) > _MOST_PIECES:
        raise Unreadable("a long chain")
    return [*pieces, text[begins:].strip()], operators


def _nesting(text: str) -> int:
    deepest = depth = 0
    for character in text:
        depth += (character in _OPENING) - (character in _CLOSING)
        deepest = max(deepest, depth)
    return deepest


def _listed(parts: list[str], words: set[str], depth: int) -> Shape:
    items = [read(part, depth + 1) for part in parts]
    if all(isinstance(item, RealSet) for item in items):
        sets = [item for item in items if isinstance(item, RealSet)]
        one_of_all = words == {","} and any(each.region == regions.REALS for each in sets)
        if len({each.variable for each in sets}) == 1 and (words in ({"or"}, {"and"}) or one_of_all):
            combine = regions.union if words == {"or"} else regions.intersection
            return RealSet(combine(*(each.region for each in sets)), sets[0].variable)
    first = items[0]
    if isinstance(first, Named) and all(isinstance(item, Scalar) for item in items[1:]):
        items = [first, *(Named(first.name, item) for item in items[1:])]  # x = 3 or 4
    names = {item.name for item in items if isinstance(item, Named)}
    if len(names) == 1 and all(isinstance(item, Named) for item in items):
        items = [item.value for item in items if isinstance(item, Named)]  # several values of one variable
    shared = items[-1]
    if isinstance(shared, Scalar) and shared.unit and all(isinstance(item, Scalar) for item in items):
        scalars = [item for item in items if isinstance(item, Scalar)]
        if not any(item.unit for item in scalars[:-1]):  # 3, 4 and 5 cm
            items = [Scalar(item.node, shared.unit, item.text) for item in scalars]
    if "or" in words and _are_one(items):
        return items[0]  # 0.75, or 3/4
    if any(part in _ELLIPSES for part in parts):
        return Sequence(tuple(items), "...", "...")  # the order of 1, 2, ..., n means something
    return Sequence(tuple(items))


def _are_one(items: list[Shape]) -> bool:
    keys = {key(item) for item in items}
    return len(keys) == 1 and None not in keys


_OPERATORS = {"\\le": "<=", "\\ge": ">=", "\\ne": "!=", "==": "="}


def _related(pieces: list[str], operators: list[str], depth: int) -> Shape:
    signs = [_OPERATORS.get(operator, operator) for operator in operators]
    if signs == ["\\in"]:
        if not is_name(pieces[0]) and not _TUPLE_OF_NAMES.fullmatch(pieces[0]):
            raise Unreadable("no name of a variable")
        shape = read(pieces[1], depth + 1)
        if isinstance(shape, RealSet):
            return RealSet(shape.region, pieces[0])
        if isinstance(shape, Sequence) and shape.opening == OPEN_SET:
            return shape  # some values, and no interval
        inside = region(shape)
        return RealSet(inside, pieces[0]) if inside is not None and isinstance(shape, Sequence) else shape
    if signs[-1] == "\\approx" and len(signs) == 1 and pieces[0]:
        exact, rounded = scalar(pieces[0]), scalar(pieces[1])
        a, b = floats.real(exact.node), floats.real(rounded.node)
        if a is None or b is None or abs(a - b) > 0.01 * abs(a):
            raise Unreadable("a value and another number")
        return exact  # 2/3 ≈ 0.667
    if set(signs) == {"="}:
        return _equation(pieces, depth)
    if not set(signs) <= {"<", ">", "<=", ">=", "!="}:
        raise Unreadable("a relation of another kind")
    if len(pieces) == 2 and not pieces[0]:
        return _bounded("", signs[0], read_expression(pieces[1]))
    nodes = [read_expression(piece) for piece in pieces]
    if len(nodes) == 2:
        left, right = nodes
        if left.kind == "symbol" and left.symbols() and not right.symbols():
            return _bounded(str(left.value), signs[0], right)
        if right.kind == "symbol" and right.symbols() and not left.symbols():
            return _bounded(str(right.value), _turned(signs[0]), left)
        if signs[0] == "!=":
            raise Unreadable("an inequality of another kind")
        if signs[0][0] == ">":
            left, right = right, left
        return Relation("<" + signs[0][1:], left, right)
    middle = nodes[1]
    if len(nodes) != 3 or middle.kind != "symbol" or not middle.symbols() or signs[0][0] != signs[1][0]:
        raise Unreadable("a long chain of inequalities")
    if nodes[0].symbols() or nodes[2].symbols() or signs[0] == "!=":
        raise Unreadable("ends that are not constants")
    low = _bounded(str(middle.value), _turned(signs[0]), nodes[0])
    high = _bounded(str(middle.value), signs[1], nodes[2])
    return RealSet(regions.intersection(low.region, high.region), low.variable)


def _turned(sign: str) -> str:
    return sign.translate(str.maketrans("<>", "><"))


def _bounded(variable: str, sign: str, bound: Node) -> RealSet:
    try:
        return RealSet(regions.bounded(sign, bound), variable)
    except regions.Undecided:
        raise Unreadable("no bound") from None


def is_name(text: str) -> bool:
    """Whether the text is what an answer is called, such as `x`, `f(x)`, `AB` or `\\text{Area}`."""
    match = _NAME.fullmatch(text)
    if match and text.startswith("\\"):
        command = re.match(r"\\([A-Za-z]+)", text)
        return command is not None and command[1] in {*GREEK, *_DECORATIONS}
    return bool(match or _WORDS_NAME.fullmatch(text))


def _equation(pieces: list[str], depth: int) -> Shape:
    if not all(pieces):
        if len(pieces) == 2 and not pieces[0]:
            return read(pieces[1], depth + 1)  # "= 5"
        raise Unreadable("an equation without a side")
    if len(pieces) == 2:
        left, right = pieces
        if _TUPLE_OF_NAMES.fullmatch(left):
            return _named_items(left, read(right, depth + 1))
        both = _both(left, right)
        if is_name(left) and not (both and not both[0].symbols()):
            return Named(left, read(right, depth + 1), both)
        if is_name(right) and both and both[1].symbols() and not both[0].symbols():
            return Named(right, scalar(left), both)
        if both is None:
            raise Unreadable("sides that are no expressions")
        if not both[0].symbols() and not both[1].symbols():
            if forms.equal(*both) is not True:
                raise Unreadable("two different numbers")
            return scalar(right)
        return Relation("=", *both)
    last = scalar(pieces[-1])
    for piece in pieces[:-1]:
        if is_name(piece) and piece not in ("e", "i"):
            continue
        earlier = read_expression(piece)
        if earlier.symbols() and not last.node.symbols():
            if not is_sum_of_names(earlier):
                raise Unreadable("an equation that says more than a value")
        elif forms.equal(earlier, last.node) is not True:
            raise Unreadable("two different values")
    return Named(pieces[0], last) if is_name(pieces[0]) else last


def _named_items(left: str, values: Shape) -> Sequence:
    """The items of `(x, y) = (2, -3)`, each with its name."""
    names = left.strip("()").split(",")
    if not isinstance(values, Sequence) or values.opening != "(" or len(values.items) != len(names):
        raise Unreadable("names and values that do not match")
    named = (Named(name.strip(), value) for name, value in zip(names, values.items, strict=True))
    return Sequence(tuple(named), "(", ")")


def is_sum_of_names(node: Node) -> bool:
    """Whether the expression is a sum of variables, such as m + n."""
    return node.kind == "symbol" or (node.kind == "sum" and all(part.kind == "symbol" for part in node.parts))


def _both(left: str, right: str) -> tuple[Node, Node] | None:
    try:
        return read_expression(left), read_expression(right)
    except Unreadable:
        return None


def _combined(pieces: list[str], operators: list[str], depth: int) -> Shape:
    sets = []
    for piece in pieces:
        inside = region(read(piece, depth + 1))
        if inside is None:
            raise Unreadable("no set of reals")
        sets.append(inside)
    total = sets[0]
    for operator, each in zip(operators, sets[1:], strict=True):
        if operator == "\\cup":
            total = regions.union(total, each)
        elif operator == "\\cap":
            total = regions.intersection(total, each)
        else:
            total = regions.difference(total, each)
    return RealSet(total)


def _bracketed(text: str, depth: int) -> Shape | None:
    opening, closing, inner = _brackets(text)
    if not opening:
        return None
    if opening == OPEN_SET and not inner.strip():
        return EMPTY
    if opening == OPEN_SET:
        builder = _builder(inner, depth)
        if builder is not None:
            return builder
    parts, words = split(inner, inside=True)
    if len(parts) == 1:
        shape = read(inner, depth + 1)
        if opening in ("[", OPEN_SET, "⟨") and not isinstance(shape, Matrix):
            return Sequence((shape,), opening, closing)
        return shape
    if words - {","} and opening not in (OPEN_SET, "{"):
        raise Unreadable("brackets around no tuple")
    items = tuple(read(part, depth + 1) for part in parts)
    if opening in ("{", OPEN_SET):
        marks = ("...", "...") if any(part in _ELLIPSES for part in parts) else (OPEN_SET, CLOSE_SET)
        opening, closing = marks
    return Sequence(items, opening, closing)


def _brackets(text: str) -> tuple[str, str, str]:
    """The brackets around the whole text and what is inside, or empty texts."""
    if text.startswith(r"\langle") and text.endswith(r"\rangle"):
        return "⟨", "⟩", text[len(r"\langle") : -len(r"\rangle")]
    if text[0] not in _OPENING or text[-1] not in _CLOSING:
        return "", "", ""
    depth = 0
    for i, character in enumerate(text):
        depth += (character in _OPENING) - (character in _CLOSING)
        if depth == 0 and i < len(text) - 1:
            return "", "", ""
    pairs = {"(": ")]", "[": ")]", "{": "}", OPEN_SET: CLOSE_SET}
    if depth or text[-1] not in pairs[text[0]]:
        return "", "", ""
    return text[0], text[-1], text[1:-1]


def _builder(inner: str, depth: int) -> RealSet | None:
    """The set of all x with a property, such as `x | x > 3`."""
    match = re.fullmatch(r"\s?([A-Za-z])\s?(?:\\in\s?\\mathbb\s?\{?R\}?)?\s?(?:\||:)\s?(.+)", inner)
    if match is None:
        return None
    shape = read(match[2], depth + 1)
    return shape if isinstance(shape, RealSet) and shape.variable == match[1] else None


def _matrix(text: str, depth: int) -> Matrix | None:
    match = _MATRIX.fullmatch(text)
    if match is None or r"\begin" in match[1]:
        return None
    rows = [row for row in match[1].split("\\\\") if row.strip()]
    if len(rows) > 12 or any(row.count("&") > 11 for row in rows):
        raise Unreadable("a large matrix")
    read_rows = tuple(tuple(read(cell, depth + 1) for cell in row.split("&")) for row in rows)
    if not read_rows or len({len(row) for row in read_rows}) != 1:
        raise Unreadable("rows of different lengths")
    return Matrix(read_rows)


def _ratio(text: str) -> Ratio | None:
    pieces, operators = _split_at(re.compile(r":|\\text\{ ?to ?\}|(?<=\d) to (?=\d)"), text)
    if not operators or len(pieces) > 10:
        return None
    return Ratio(tuple(read_expression(piece) for piece in pieces), tuple(pieces))


def _digits(text: str, depth: int) -> Digits | None:
    match = _DIGITS.fullmatch(text)
    if match is None:
        return None
    word = next(group for group in match.groups()[1:] if group)
    base = _BASES.index(word) + 2 if word in _BASES else int(word) if re.fullmatch(r"\d{1,2}", word) else 0
    if not 2 <= base <= 36:
        raise Unreadable("no base")
    digits = match[1].upper().lstrip("0") or "0"
    if any(int(digit, 36) >= base for digit in digits):
        raise Unreadable("a digit that the base does not have")
    return Digits(digits, base)


def _congruence(text: str, depth: int) -> Congruence | None:
    match = _CONGRUENCE.fullmatch(text) or _MODULO.fullmatch(text)
    if match is None:
        return None
    modulus = (match["a"] or match.groupdict().get("b") or "").strip()
    left = match["left"]
    return Congruence(
        read_expression(left) if left and left.strip() else None,
        read_expression(match["residue"]),
        read_expression(modulus),
    )


def key(shape: Shape) -> str | None:
    """A text that equal shapes may share and different shapes never do, or None if there is none."""
    if isinstance(shape, Scalar):
        shape = with_unit(shape, spaced=True) or shape
        if shape.node.has("plus_minus") or shape.node.has("infinity"):
            return None
        value = forms.key(shape.node)
        return None if value is None else f"{value} {shape.unit}".strip()
    if isinstance(shape, Sequence):
        keys = [key(item) for item in shape.items]
        if None in keys:
            return None
        texts = [str(each) for each in keys]
        if shape.opening in ("", OPEN_SET):
            return OPEN_SET + ", ".join(sorted(texts)) + CLOSE_SET
        return shape.opening + ", ".join(texts) + shape.closing
    return None
