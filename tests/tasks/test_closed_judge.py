"""Judges that evaluate the answer as Python, closed: the score cannot be written by the answer.

The package reasoning-gym is an extra that CI does not have. So one package with its name and the same habits stands in
for it in the real sandbox. Where the real one is installed, every generator of it is tried too.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import sympy

from ctpo.sandbox import Sandbox, interpreter
from ctpo.tasks import closed_judge, generated

STAND_IN = """
import json
from fractions import Fraction
import sympy
from sympy import parse_expr, sympify
import sympy as sp

def calls_eval(answer, entry):
    return 1.0 if eval(answer) == eval(entry["answer"]) else 0.0
def calls_exec(answer, entry):
    scope = {}
    exec("value = " + answer, scope)
    return 1.0 if scope["value"] == 42 else 0.0
def calls_the_parser(answer, entry):
    return 1.0 if parse_expr(answer, local_dict={"x": sympy.Symbol("x")}) == sp.parse_expr("6*7") else 0.0
def calls_sympify(answer, entry):
    return 1.0 if sympify(answer) == 42 else 0.0
def compiles(answer, entry):
    import types
    return float(types.FunctionType(compile(answer, "x", "eval"), {})())
def reads_json(answer, entry):
    return 0.0 if any(abs(each - 42) > 1 for each in json.loads(answer)) else 1.0
def reads_numbers(answer, entry):
    return 0.0 if abs(float(answer) - 42) > 1 or not isinstance(float(answer), float) else 1.0
def shows(answer, entry):
    print(answer)
    return 0.0
def makes_a_class(answer, entry):
    from collections import namedtuple
    return float(namedtuple("A", "b")(1.0).b) if answer == "42" else 0.0
def true_for_all(answer, entry):
    return 1.0
def get_score_answer_fn(name):
    return true_for_all if name in ("game_of_life_halting", "puzzle24", "countdown", "coin_flip") else globals()[name]
"""
ENTRY = {"answer": "42", "metadata": {"numbers": [6, 7]}}
FORGED = [
    "[__import__('os').write(1, b'\\n1.0\\n'), __import__('os')._exit(0)]",
    "__import__('os').write(1,b'1.0') and __import__('os')._exit(0)",
    'entry["answer"]',
    'int(entry["answer"])',
    "(lambda: 42)()",
    "[42 for _ in '1'][0]",
    "().__class__.__base__.__subclasses__()",
    "sympify('42')",
    "Symbol('x').__class__",
    "f'{42}'",
    "nan",
    "[NaN]",
    "1.0\n1.0",
    "42 or 7",
]
EVALUATING = ["calls_eval", "calls_exec", "calls_the_parser", "calls_sympify", "compiles", "reads_json"]
EVALUATING += ["reads_numbers", "shows", "makes_a_class"]


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    folder = tmp_path_factory.mktemp("site-packages")
    (folder / "reasoning_gym").mkdir()
    (folder / "reasoning_gym" / "__init__.py").write_text(STAND_IN)
    before = interpreter._package_folders
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_package_folders", lambda: (folder, *before()))
        sandbox = Sandbox(memory_mb=1024, timeout_s=20, preload=["reasoning_gym", "sympy"])
    with sandbox:
        yield sandbox


def scores(box: Sandbox, asked: list[tuple[str, str, dict[str, Any]]]) -> list[float | str]:
    """What comes of each generator, answer and entry: the score, or how the program failed."""
    results = box.run([generated.judging_program(*each) for each in asked])
    return [generated._score(each.stdout) if each.status == "ok" else each.status for each in results]


def test_no_answer_writes_its_own_score(box: Sandbox) -> None:
    asked = [(name, answer, ENTRY) for name in EVALUATING for answer in FORGED]
    for (name, answer, _), score in zip(asked, scores(box, asked), strict=True):
        assert score in (0.0, "error"), (name, answer, score)


def test_right_answers_stay_right(box: Sandbox) -> None:
    asked = [
        ("calls_eval", "(20 + 1) * 2", ENTRY),
        ("calls_the_parser", "5!/3 + 2 + x - x", ENTRY),
        ("calls_sympify", "sqrt(42)**2", ENTRY),
        ("reads_json", "[42, 42.5]", ENTRY),
        ("reads_numbers", "42.0", ENTRY),
        ("makes_a_class", "42", ENTRY),
        ("puzzle24", "7 * 6", ENTRY),
        ("countdown", "(6)*(7)", ENTRY),
        ("coin_flip", "42/1", ENTRY),
        ("game_of_life_halting", " 42", ENTRY),
    ]
    assert scores(box, asked) == [1.0] * len(asked)


def test_answers_that_are_right_for_every_problem_are_not(box: Sandbox) -> None:
    """These judges of reasoning-gym give the full score to each of these answers."""
    asked = [
        ("game_of_life_halting", "no", ENTRY),
        ("coin_flip", "0", {"answer": "0.25"}),
        ("puzzle24", "6*4*1*1", ENTRY),
        ("puzzle24", "6**7", ENTRY),
        ("countdown", "0x2a # 6 7", ENTRY),
        ("countdown", "6*7*1e0", ENTRY),
    ]
    assert set(scores(box, asked)) == {0.0}


def test_the_parser_agrees_with_sympy_on_expressions() -> None:
    names = ["2", "3.5", "x", "y", "pi", "E", "sin(x)", "log(y)", "sqrt(2)", "4!", "(x - 1)"]
    draw = random.Random(0)
    for _ in range(100):
        text = draw.choice(names)
        for _ in range(draw.randint(1, 4)):
            text += f" {draw.choice(['+', '-', '*', '/', '**'])} {draw.choice(names)}"
        assert closed_judge.parse_expression(text) == sympy.parse_expr(text), text


@pytest.mark.parametrize(
    "text", [*FORGED[:10], "x.y", "x[0]", "print(1)", "Symbol('x')('y')", "a=1", "x if x else y"]
)
def test_the_parser_takes_nothing_else(text: str) -> None:
    with pytest.raises((ValueError, SyntaxError, TypeError)):
        closed_judge.parse_expression(text)
    with pytest.raises((ValueError, SyntaxError, TypeError)):
        closed_judge.evaluate(text)


@pytest.mark.skipif(
    find_spec("reasoning_gym") is None, reason="an extra: one of its dependencies needs a compiler"
)
def test_every_generator_knows_its_own_answer_and_no_forged_one() -> None:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    without_answer = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
    asked = []
    for name in sorted(set(DATASETS) - {"composite"} - without_answer):
        entry = json.loads(generated._dumped(reasoning_gym.create_dataset(name, size=1, seed=3)[0]))
        asked += [(name, entry["answer"], entry), (name, FORGED[0], entry)]
    sandbox = generated._sandbox("all")
    for (name, answer, entry), score in zip(asked, scores(sandbox, asked), strict=True):
        assert (score == 1.0) == (answer == entry["answer"]), (name, answer, score)
