"""Calls a judge of reasoning-gym on text that it cannot evaluate as Python. This file runs inside of the sandbox.

`generated.py` sends its text there before each call, so it imports nothing of this package. Several judges call `eval`
or sympy's parser on the answer. An answer that is a program could then print a score, or read the reference answer.
Here `eval` takes literals and arithmetic alone, and the parser knows numbers, symbols and elementary functions alone.
Code that comes from a text in another way is not executed.

Some judges also give the full score to answers that are wrong in every problem, such as `nan`. They are corrected here.
"""

from __future__ import annotations

import ast
import json
import math
import operator
import re
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import Any

_FUNCTIONS = """
sin cos tan cot sec csc asin acos atan acot asec acsc sinh cosh tanh asinh acosh atanh exp log ln sqrt cbrt Abs sign
factorial erf
""".split()
_CONSTANTS = ("pi", "E", "I")
_NUMBERS = ("Integer", "Float", "Rational", "Symbol")  # sympy's parser writes them around what it reads
_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.BitAnd: operator.and_,
    ast.BitOr: operator.or_,
    ast.BitXor: operator.xor,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
    ast.Invert: operator.invert,
}
_MAY_COMPILE = """
ast importlib._bootstrap_external typing collections dataclasses sympy.polys.monomials
""".split()
"""Modules that compile to read, to import, or to make classes and functions out of texts of their own."""


def score(name: str, answer: str, entry: dict[str, Any]) -> float:
    """The score that the judge of this generator gives, corrected."""
    import reasoning_gym

    judge = reasoning_gym.get_score_answer_fn(name)
    close()
    given = float(judge(answer=answer, entry=entry))
    return given if given < 1.0 or _CORRECTED.get(name, _accept)(answer, entry) else 0.0


def close() -> None:
    """Take from reasoning-gym, and from sympy's parser, what evaluates text as Python."""
    from sympy.parsing import sympy_parser

    unsafe = sympy_parser.parse_expr
    for module, content in [(name, vars(module)) for name, module in sys.modules.items()]:
        if module.partition(".")[0] in ("reasoning_gym", "sympy"):
            if content.get("parse_expr") is unsafe:
                content["parse_expr"] = parse_expression
            if module.startswith("reasoning_gym"):
                content |= {"eval": evaluate, "float": _Float, "complex": _Complex, "json": _StrictJSON}
    sys.addaudithook(_refuse_code)  # the last one of Python's own doors; it cannot be taken away again


def _refuse_code(event: str, arguments: tuple[Any, ...]) -> None:
    executes = event == "exec" and re.match("<(?!frozen)", arguments[0].co_filename)
    if (executes or event == "compile") and sys._getframe(1).f_globals.get("__name__") not in _MAY_COMPILE:
        raise ValueError("a text is not executed as Python")


def evaluate(text: str, *_: Any) -> Any:
    """The value of a Python literal, or of arithmetic on numbers.

    Raises:
        ValueError: for everything else.
    """
    try:
        return ast.literal_eval(text)
    except ValueError:
        return _value(ast.parse(text.strip(), mode="eval").body, {}, plain=True)


def parse_expression(text: str, local_dict: dict[str, Any] | None = None, *_: Any, **__: Any) -> Any:
    """What sympy's `parse_expr` returns, for numbers, symbols, arithmetic and elementary functions.

    Raises:
        ValueError: for everything else.
    """
    import sympy
    from sympy.parsing import sympy_parser

    local = dict(local_dict or {})
    known = {name: getattr(sympy, name) for name in (*_FUNCTIONS, *_CONSTANTS)}
    code = sympy_parser.stringify_expr(text, dict(local), known, sympy_parser.standard_transformations)
    numbers = {name: getattr(sympy, name) for name in _NUMBERS}
    return _value(ast.parse(code.strip(), mode="eval").body, {**known, **numbers, **local})


def _value(node: ast.expr, names: dict[str, Any], *, plain: bool = False) -> Any:
    match node:
        case ast.BinOp(left, operation, right) if type(operation) in _BINARY:
            return _BINARY[type(operation)](
                _value(left, names, plain=plain), _value(right, names, plain=plain)
            )
        case ast.UnaryOp(operation, operand) if type(operation) in _UNARY:
            return _UNARY[type(operation)](_value(operand, names, plain=plain))
        case ast.Constant(int() | float() as number) if plain:
            return number
        case ast.Name(name) if name in names and name not in (*_FUNCTIONS, *_NUMBERS):
            return names[name]
        case ast.Call(ast.Name(name), [ast.Constant(value)], []) if name in names and name in _NUMBERS:
            return names[name](value)
        case ast.Call(ast.Name(name), arguments, []) if name in names and name in _FUNCTIONS:
            return names[name](*[_value(argument, names) for argument in arguments])
    raise ValueError(f"{type(node).__name__} is not evaluated")


class _NoNaN(type):
    """Of classes that stand for `float` and `complex`: a comparison with "nan" is neither true nor false."""

    real: type

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, cls.real)

    def __call__(cls, *arguments: Any) -> Any:
        number = cls.real(*arguments)
        if number != number:
            raise ValueError("nan is not a number")
        return number


class _Float(metaclass=_NoNaN):
    real = float


class _Complex(metaclass=_NoNaN):
    real = complex


class _StrictJSON:
    """The module `json`, without the numbers NaN and Infinity, which JSON does not have."""

    JSONDecodeError = json.JSONDecodeError
    dumps = staticmethod(json.dumps)

    @staticmethod
    def loads(text: str) -> Any:
        def refuse(name: str) -> Any:
            raise json.JSONDecodeError(f"{name} is not JSON", text, 0)

        return json.loads(text, parse_constant=refuse)


def _accept(answer: str, entry: dict[str, Any]) -> bool:
    return True


def _same_word(answer: str, entry: dict[str, Any]) -> bool:
    return answer.strip().lower() == str(entry["answer"]).strip().lower()


def _same_probability(answer: str, entry: dict[str, Any]) -> bool:
    given, expected = (float(Fraction(text.replace(",", ""))) for text in (answer, entry["answer"]))
    return math.isclose(given, expected, rel_tol=1e-3)


def _arithmetic_of_the_numbers(answer: str, entry: dict[str, Any]) -> bool:
    """Whether the answer is +, −, ·, / and brackets around the problem's own numbers, each used once."""
    if not re.fullmatch(r"[\d\s()+*/-]*", answer) or re.search(r"\*\s*\*|/\s*/", answer):
        return False
    return sorted(map(int, re.findall(r"\d+", answer))) == sorted(entry["metadata"]["numbers"])


_CORRECTED: dict[str, Callable[[str, dict[str, Any]], bool]] = {
    "coin_flip": _same_probability,  # "0" begins like every probability
    "countdown": _arithmetic_of_the_numbers,  # numbers in a comment, or written as 0x10, are not seen
    "game_of_life_halting": _same_word,  # every text is true
    "puzzle24": _arithmetic_of_the_numbers,  # any numbers are taken
}
