"""A task with an environment of your own: the model guesses a number, and is answered with "higher" or "lower".

    python examples/guess.py                  # plays one conversation with a player that halves the range
    ctpo task check examples/guess.py         # is the task fit for training?
    ctpo train task=examples/guess.py model=Qwen/Qwen3-0.6B

An environment has two methods. `reset` begins a conversation, and `step` reads one reply of the model. It returns what
the model reads next, the reward of this turn, and whether the conversation is over.
"""

from __future__ import annotations

import random

from ctpo.tasks import Problem, Task


class Guess:
    """Knows a number from 1 to 100. A right guess earns 1."""

    def reset(self, problem: Problem) -> None:
        """Begin a conversation. The same object is used again, so everything is set anew."""
        self.number = int(problem.answer)

    def step(self, reply: str) -> tuple[str | None, float, bool]:
        """Answer a guess."""
        guess = int(reply) if reply.strip().isdecimal() else 0
        if guess == self.number:
            return None, 1.0, True
        return ("higher" if guess < self.number else "lower"), 0.0, False


def problems(split: str, count: int, seed: int) -> list[Problem]:
    """Draw numbers: even ones to train on, and odd ones to test with."""
    numbers = random.Random(f"{split} {seed}")
    odd = split == "test"
    question = "Guess my number from 1 to 100. Reply with a number only."
    return [
        Problem(prompt=question, answer=str(2 * numbers.randint(1, 50) - odd), id=f"{split}-{seed}-{i}")
        for i in range(count)
    ]


task = Task(name="guess", problems=problems, environment=Guess, max_turns=7, chat=True)


def main() -> None:
    """Play one conversation, with a player in place of the model."""
    problem = problems("train", 1, 0)[0]
    environment, low, high = Guess(), 1, 100
    environment.reset(problem)
    print(f"user: {problem.prompt}")
    for turn in range(1, 8):
        guess = (low + high) // 2
        answer, reward, over = environment.step(str(guess))
        print(f"model: {guess}   ->  {answer or 'right'}, reward {reward:g}")
        if over:
            print(f"over after {turn} turns; the number was {problem.answer}")
            break
        low, high = (guess + 1, high) if answer == "higher" else (low, guess - 1)


if __name__ == "__main__":
    main()
