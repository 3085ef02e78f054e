"""A task with a tool of your own: the model may ask how many people live in a city.

    python examples/cities.py                 # shows what a model reads of the tool, and three calls
    ctpo task check examples/cities.py        # is the task fit for training?
    ctpo train task=examples/cities.py model=Qwen/Qwen3-0.6B

A tool is a Python function. Its type hints and its docstring are what the model reads. A call with wrong arguments is
answered with the reason, and so is a call that raises.
"""

from __future__ import annotations

import itertools
import json

from ctpo.rollout.calling import FunctionCall, FunctionCaller
from ctpo.tasks import FunctionTool, Problem, Task

CITIES = {"Oslo": 709_037, "Lima": 10_092_000, "Quito": 1_763_000, "Accra": 2_070_000, "Riga": 605_000}


def population(city: str) -> int:
    """Return how many people live in a city.

    Args:
        city: its English name
    """
    return CITIES[city]


def problems(split: str, count: int, seed: int) -> list[Problem]:
    """Ask for the sum of two cities. Training and test share no pair."""
    pairs = list(itertools.combinations(CITIES, 2))
    chosen = pairs[::2] if split == "train" else pairs[1::2]
    return [
        Problem(
            prompt=f"How many people live in {one} and {other} together?",
            answer=str(CITIES[one] + CITIES[other]),
            id=f"{one}-{other}",
        )
        for one, other in chosen[:count]
    ]


def check(completion: str, answer: str) -> bool:
    """The last word of the response is the number, with or without commas."""
    words = completion.rstrip(" .").split()
    return bool(words) and words[-1].replace(",", "") == answer


tool = FunctionTool(population, timeout_s=2.0, deterministic=True)
task = Task(
    name="cities",
    problems=problems,
    check=check,
    tools=[tool],
    system="Look the numbers up with the tool. End with the sum.",
)


def main() -> None:
    """Print the declaration that the model reads, and what three calls give it."""
    declared = tool.schema["function"]
    print(declared["name"], "-", declared["description"])
    print(json.dumps(declared["parameters"]))
    with FunctionCaller() as caller:
        for arguments in ({"city": "Oslo"}, {"city": "Atlantis"}):
            outcome = caller.run([FunctionCall(tool=tool, arguments=arguments)])[0]
            print(f"population({arguments}) -> {outcome.status}: {outcome.text}")
    try:
        tool.arguments({"town": "Oslo"})
    except ValueError as error:
        print(f"population({{'town': 'Oslo'}}) -> {error}")


if __name__ == "__main__":
    main()
