"""Mathematical expressions as trees, read from cleaned LaTeX or plain text.

The reader refuses what it does not know, and what can be read in two ways: `1 2`, `x2`, a word. It never evaluates.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_DEEPEST = 40
_MOST_NODES = 200
_NUMBER = re.compile(r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+", re.ASCII)
_REPEATING = re.compile(r"(\d*)\.(\d*)\\(?:overline|bar|dot)\s?\{?(\d+)\}?", re.ASCII)
_SCIENTIFIC = re.compile(r"(\d+(?:\.\d+)?|\.\d+)[eE]([+-]?\d{1,5})(?![\d.A-Za-z])", re.ASCII)
_RUN = re.compile(r"[A-Za-z]+")
_COMMAND = re.compile(r"\\([A-Za-z]+|.)", re.DOTALL)
_DEGREES = re.compile(r"\^\s?\{?\s?\\circ\s?\}?")
_SUBSCRIPT = re.compile(r"_\s?(?:\{\s?(?:\\text\{)?([A-Za-z0-9+, -]{1,20})\}?\s?\}|([A-Za-z0-9]))")
GREEK = frozenset(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi psi omega "
    "Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell".split()
)
FUNCTIONS = frozenset(
    "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log lg exp gcd lcm max min".split()
)
_CONSTANTS = {"pi": "pi", "infty": "inf", "infinity": "inf", "Infinity": "inf", "inf": "inf", "oo": "inf"}
OPERATOR = re.compile(r"\\(?:sum|prod|int|lim)(?![A-Za-z])")
"""Sums, products, integrals and limits. This reader does not know them; math-verify reads them."""


class Unreadable(ValueError):
    """The text is no expression that this reader knows."""


@dataclass(frozen=True)
class Node:
    """A part of an expression.

    `kind` is number, symbol, infinity, sum, product, quotient, power, negative, plus_minus, call, factorial or
    binomial. `value` is a number's value, a symbol's name, a function's name, or the sign of a `plus_minus`.
    """

    kind: str
    parts: tuple[Node, ...] = ()
    value: Fraction | str = ""

    def has(self, kind: str) -> bool:
        """Whether this node or a node below it is of the kind."""
        return self.kind == kind or any(part.has(kind) for part in self.parts)

    def symbols(self) -> frozenset[str]:
        """The names of the variables; π, e, i and the degree are none."""
        if self.kind == "symbol":
            return frozenset() if self.value in ("pi", "e", "i", "deg") else frozenset([str(self.value)])
        return frozenset().union(*(part.symbols() for part in self.parts))


def number(value: Fraction | int) -> Node:
    return Node("number", value=Fraction(value))


INFINITY = Node("infinity")


def read_expression(text: str) -> Node:
    """The expression that the whole text is.

    Raises:
        Unreadable: if it is none.
    """
    node, rest = read_prefix(text)
    if rest.strip():
        raise Unreadable(f"{rest[:20]!r} is left over")
    return node


def read_prefix(text: str) -> tuple[Node, str]:
    """The longest expression at the start of the text, and the rest.

    Raises:
        Unreadable: if no expression is there.
    """
    reader = _Reader(text)
    node = reader.sum(0)
    return node, text[reader.at :]


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.nodes = 0
        self.in_bars = 0

    def sum(self, depth: int) -> Node:
        terms = [self._signed(depth)]
        while True:
            mark = self.at
            sign = self._sign()
            if sign is None:
                break
            try:
                terms.append(self._apply(sign, self._signed(depth)))
            except Unreadable:
                if depth:
                    raise
                self.at = mark
                break
        return terms[0] if len(terms) == 1 else self._node("sum", *terms)

    def _signed(self, depth: int) -> Node:
        signs = []
        while (sign := self._sign()) is not None:
            signs.append(sign)
            if len(signs) > 3:
                raise Unreadable("many signs")
        node = self._term(depth)
        for sign in reversed(signs):
            node = self._apply(sign, node)
        return node

    def _sign(self) -> str | None:
        self._blanks()
        for word, sign in ((r"\pm", "±"), (r"\mp", "∓"), ("+-", "±"), ("+/-", "±")):
            if self.text.startswith(word, self.at) and not self.text[self.at + len(word) :][:1].isalpha():
                if word.startswith("+-"):
                    continue
                self.at += len(word)
                return sign
        if self._peek() in "+-" and self._peek():
            self.at += 1
            return self.text[self.at - 1]
        return None

    def _apply(self, sign: str, node: Node) -> Node:
        if sign == "+":
            return node
        if sign == "-":
            return self._node("negative", node)
        return self._node("plus_minus", node, value=sign)

    def _term(self, depth: int) -> Node:
        node = self._mixed(depth)
        while True:
            mark = self.at
            operator = self._operator()
            if operator is None:
                after_factorial = self.text[max(0, self.at - 2) : self.at].rstrip().endswith("!")
                if not self._starts_factor() and not (after_factorial and self._peek().isdigit()):
                    return node
                try:
                    node = self._node("product", node, self._factor(depth))
                except Unreadable:
                    if depth:
                        raise
                    self.at = mark
                    return node
                continue
            sign = self._sign()
            try:
                right = self._mixed(depth) if operator == "product" else self._factor(depth)
            except Unreadable:
                if depth:
                    raise
                self.at = mark
                return node
            node = self._node(operator, node, right if sign is None else self._apply(sign, right))

    def _operator(self) -> str | None:
        self._blanks()
        for word, kind in ((r"\cdot", "product"), (r"\times", "product"), (r"\div", "quotient")):
            if self.text.startswith(word, self.at) and not self.text[self.at + len(word) :][:1].isalpha():
                self.at += len(word)
                return kind
        if self._peek() == "*" or (self._peek() == "/" and self.text[self.at : self.at + 2] != "//"):
            self.at += 1
            return "product" if self.text[self.at - 1] == "*" else "quotient"
        return None

    def _starts_factor(self) -> bool:
        self._blanks()
        c = self._peek()
        if c == "\\":
            name = self._command()
            return (
                name in GREEK
                or name in FUNCTIONS
                or name in ("frac", "sqrt", "pi", "binom", "lfloor", "lceil")
            )
        return bool(c) and (c in "({" or (c == "|" and not self.in_bars) or (c.isascii() and c.isalpha()))

    def _mixed(self, depth: int) -> Node:
        """A factor, or a mixed number such as `2\\frac{3}{5}` and `2 3/5`."""
        start = self.at
        node = self._factor(depth)
        if node.kind != "number" or not re.fullmatch(r"\s*\d+\s*", self.text[start : self.at]):
            return node
        mark = self.at
        self._blanks()
        plain = re.match(r"(\d+)\s?/\s?(\d+)(?![\d.(])", self.text[self.at : self.at + 60], re.ASCII)
        if plain and self.text[self.at - 1] == " ":
            top, bottom = int(plain[1]), int(plain[2])
            self.at += plain.end()
        elif self.text.startswith(r"\frac", self.at):
            try:
                fraction = self._factor(depth)
            except Unreadable:
                if depth:
                    raise
                self.at = mark
                return node  # a unit, such as the fraction of m and s
            ends = fraction.parts
            if fraction.kind != "quotient" or any(part.kind != "number" for part in ends):
                self.at = mark
                return node
            values = [part.value for part in ends if isinstance(part.value, Fraction)]
            if len(values) < 2 or any(value.denominator != 1 for value in values):
                self.at = mark
                return node
            top, bottom = int(values[0]), int(values[1])
        else:
            return node
        if not 0 < top < bottom:
            raise Unreadable("neither a mixed number nor a product")
        return self._node("sum", node, number(Fraction(top, bottom)))

    def _factor(self, depth: int) -> Node:
        if depth > _DEEPEST:
            raise Unreadable("too deep")
        node = self._base(depth)
        while True:
            self._blanks()
            c = self._peek()
            degrees = _DEGREES.match(self.text, self.at) if c == "^" else None
            if degrees:
                if depth == 0:
                    return node  # a unit
                self.at = degrees.end()
                node = self._node("product", node, Node("symbol", value="deg"))
            elif c == "^":
                self.at += 1
                node = self._node("power", node, self._exponent(depth + 1))
            elif c == "!" and self.text[self.at : self.at + 2] not in ("!=", "!!"):
                self.at += 1
                node = self._node("factorial", node)
            else:
                return node

    def _exponent(self, depth: int) -> Node:
        self._blanks()
        c = self._peek()
        if c in ("{", "("):
            node = self._group(depth)
            self._blanks()
            if self._peek() == "^":
                self.at += 1
                node = self._node("power", node, self._exponent(depth + 1))
            return node
        sign = self._sign()
        node = self._base(depth)
        self._blanks()
        if self._peek() == "^" and not _DEGREES.match(self.text, self.at):
            self.at += 1
            node = self._node("power", node, self._exponent(depth + 1))
        return node if sign is None else self._apply(sign, node)

    def _base(self, depth: int) -> Node:
        if depth > _DEEPEST:
            raise Unreadable("too deep")
        self._blanks()
        c = self._peek()
        if c and (c in "0123456789."):
            return self._number()
        if c and c in "({":
            return self._group(depth + 1)
        if c == "|" and not self.in_bars:
            return self._bars(depth + 1)
        if c == "\\":
            return self._named(depth + 1)
        run = _RUN.match(self.text, self.at)
        if run is None:
            raise Unreadable(f"{self.text[self.at : self.at + 20]!r} starts no expression")
        return self._letters(run[0], depth + 1)

    def _number(self) -> Node:
        repeating = _REPEATING.match(self.text, self.at)
        if repeating:
            whole, fixed, period = repeating.groups()
            self.at = repeating.end()
            digits = 10 ** len(fixed)
            value = Fraction(int(whole or 0)) + Fraction(int(fixed or 0), digits)
            return number(value + Fraction(int(period), digits * (10 ** len(period) - 1)))
        scientific = _SCIENTIFIC.match(self.text, self.at)
        if scientific:
            self.at = scientific.end()
            power = self._node("power", number(10), number(int(scientific[2])))
            return self._node("product", number(Fraction(scientific[1])), power)
        match = _NUMBER.match(self.text, self.at)
        if match is None:
            raise Unreadable("a dot alone")
        self.at = match.end()
        rest = self.text[self.at : self.at + 2]
        if rest[:1] == "_" or re.match(r"\.\.|\.\d|,\d|\d", rest) or self.text.startswith(r"\ldots", self.at):
            raise Unreadable("no plain number")
        if rest[:1] == "." and not rest[1:].strip():
            self.at += 1
        return number(Fraction(match[0].replace(",", "")))

    def _group(self, depth: int) -> Node:
        closing = {"(": ")", "{": "}"}[self._peek()]
        self.at += 1
        node = self.sum(depth + 1)
        self._expect(closing)
        return node

    def _bars(self, depth: int) -> Node:
        self.at += 1
        self.in_bars += 1
        node = self.sum(depth + 1)
        self.in_bars -= 1
        self._expect("|")
        return self._node("call", node, value="abs")

    def _named(self, depth: int) -> Node:
        if depth > _DEEPEST:
            raise Unreadable("too deep")
        name = self._command()
        self.at += 1 + len(name)
        if name in _CONSTANTS:
            return self._constant(_CONSTANTS[name])
        if name in GREEK:
            return self._symbol(name)
        if name in FUNCTIONS:
            return self._call(name, depth)
        if name == "frac":
            top = self._argument(depth)
            return self._node("quotient", top, self._argument(depth))
        if name == "binom":
            top = self._argument(depth)
            return self._node("binomial", top, self._argument(depth))
        if name == "sqrt":
            return self._root(depth)
        if name in ("lfloor", "lceil"):
            node = self.sum(depth + 1)
            self._expect("\\rfloor" if name == "lfloor" else "\\rceil")
            return self._node("call", node, value="floor" if name == "lfloor" else "ceil")
        raise Unreadable(f"\\{name} is unknown")

    def _root(self, depth: int) -> Node:
        degree = number(2)
        self._blanks()
        if self._peek() == "[":
            self.at += 1
            degree = self.sum(depth + 1)
            self._expect("]")
            self._blanks()
        c = self._peek()
        node = self._number() if c and c.isdigit() else self._argument(depth)
        return self._node("power", node, self._node("quotient", number(1), degree))

    def _argument(self, depth: int) -> Node:
        """What follows a command: a group, one digit, one letter or one command."""
        self._blanks()
        c = self._peek()
        if c and c in "{(":
            return self._group(depth)
        if c and c in "0123456789":
            self.at += 1
            return number(int(c))
        if c and c.isascii() and c.isalpha():
            self.at += 1
            return self._symbol(c)
        if c == "\\":
            return self._named(depth + 1)
        raise Unreadable("no argument")

    def _letters(self, run: str, depth: int) -> Node:
        if run in _CONSTANTS:
            self.at += len(run)
            return self._constant(_CONSTANTS[run])
        if run in FUNCTIONS or run in ("sqrt", "abs", "floor", "ceil"):
            self.at += len(run)
            self._blanks()
            if run in FUNCTIONS:
                return self._call(run, depth)
            if self._peek() != "(":
                raise Unreadable(f"{run} has no argument")
            argument = self._group(depth)
            if run == "sqrt":
                return self._node("power", argument, number(Fraction(1, 2)))
            return self._node("call", argument, value=run)
        if is_word(run):
            raise Unreadable(f"{run} is a word")
        self.at += 1
        return self._symbol(run[0])

    def _symbol(self, name: str) -> Node:
        subscript = _SUBSCRIPT.match(self.text, self.at)
        if subscript:
            self.at = subscript.end()
            name += "_" + (subscript[1] or subscript[2]).strip()
        elif self._peek() in ("_", "'") and self._peek():
            raise Unreadable("a name that this reader does not know")
        return self._node("symbol", value=name)

    def _constant(self, name: str) -> Node:
        return self._node("infinity") if name == "inf" else self._node("symbol", value=name)

    def _call(self, name: str, depth: int) -> Node:
        self._blanks()
        base = exponent = None
        if self._peek() == "_" and name in ("log", "lg"):
            self.at += 1
            base = self._exponent(depth + 1)
            self._blanks()
        if self._peek() == "^":
            self.at += 1
            exponent = self._exponent(depth + 1)
            if exponent.kind == "negative":
                raise Unreadable("an inverse function or a reciprocal")
            self._blanks()
        if self._peek() in ("(", "{") and self._peek():
            arguments = self._arguments(depth)
        else:
            arguments = [self._bare_argument(depth)]
        if name in ("gcd", "lcm", "max", "min"):
            node = self._node("call", *arguments, value=name)
        elif len(arguments) != 1:
            raise Unreadable("one argument is right")
        elif name == "exp":
            node = self._node("power", Node("symbol", value="e"), arguments[0])
        elif base is not None:
            node = self._node(
                "quotient", *(self._node("call", each, value="ln") for each in (arguments[0], base))
            )
        else:
            node = self._node("call", arguments[0], value=name)
        return node if exponent is None else self._node("power", node, exponent)

    def _arguments(self, depth: int) -> list[Node]:
        closing = {"(": ")", "{": "}"}[self._peek()]
        self.at += 1
        arguments = [self.sum(depth + 1)]
        self._blanks()
        while self._peek() == "," and len(arguments) < 20:
            self.at += 1
            arguments.append(self.sum(depth + 1))
            self._blanks()
        self._expect(closing)
        return arguments

    def _bare_argument(self, depth: int) -> Node:
        """The argument of `\\sin 2x`: factors without an operator between them, up to the next function."""
        node = self._factor(depth + 1)
        while self._starts_factor() and self._command() not in FUNCTIONS and self._peek() != "(":
            node = self._node("product", node, self._factor(depth + 1))
        if self._peek() == "/":
            raise Unreadable("it is not clear where the argument ends")
        return node

    def _node(self, kind: str, *parts: Node, value: Fraction | str = "") -> Node:
        self.nodes += 1
        if self.nodes > _MOST_NODES:
            raise Unreadable("too long")
        return Node(kind, parts, value)

    def _expect(self, word: str) -> None:
        self._blanks()
        if not self.text.startswith(word, self.at):
            raise Unreadable(f"{word} is missing")
        self.at += len(word)

    def _command(self) -> str:
        match = _COMMAND.match(self.text, self.at)
        return match[1] if match else ""

    def _peek(self) -> str:
        return self.text[self.at : self.at + 1]

    def _blanks(self) -> None:
        while self._peek() == " ":
            self.at += 1


def is_word(run: str) -> bool:
    """Whether letters without a space are a word and no product of variables: `cats`, and neither `xyz` nor `AB`."""
    if len(run) < 4:
        return run.lower() in _SHORT_WORDS
    return list(run) != sorted(set(run))


_SHORT_WORDS = frozenset(
    "and or not nor the per nan yes no all any odd one two six ten day was are is of to in at for on by so if off "
    "its it out new old few".split()
)
