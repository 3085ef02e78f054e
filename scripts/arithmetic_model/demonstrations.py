"""A sloppy demonstrator: its mistakes leave reinforcement learning something to mend."""

from __future__ import annotations

import random
from dataclasses import dataclass

from ctpo.tasks.arithmetic.task import TOOL, terms
from ctpo.tasks.arithmetic.tokenizer import STEP_END


@dataclass(frozen=True, kw_only=True)
class Demonstrator:
    """How careless the demonstrator is, and how soon it grows impatient with the tool."""

    tool_shares: tuple[float, ...] = (1.0, 0.95, 0.82, 0.67, 0.47)
    """Probability, step by step, that it is handed to Python rather than done in the head; the last one holds
    for all later steps. Below one half, the likeliest completion ends in the head, so that greedy decoding
    fails as well before reinforcement learning."""
    garble: float = 0.006
    """Probability that a digit the demonstrator writes is replaced by a random one."""

    def __post_init__(self) -> None:
        if not self.tool_shares or not all(0 <= p <= 1 for p in (*self.tool_shares, self.garble)):
            raise ValueError(
                f"tool_shares={self.tool_shares!r}, garble={self.garble!r}: give probabilities from 0 to 1, "
                "at least one tool share"
            )

    def solve(self, prompt: str, draw: random.Random) -> str:
        """Write one solution of a prompt, tool results included.

        A step is `<py>print(3+67)</py><out>70</out>` or, with about as many tokens of the model's own,
        `3+67=70;`. A slip is carried on: each step starts from what the step before says, and the tool
        answers what it was asked.
        """
        (_, total), *rest = terms(prompt)
        steps = []
        for index, (sign, operand) in enumerate(rest):
            share = self.tool_shares[min(index, len(self.tool_shares) - 1)]
            left, right = self._write(total, draw), self._write(operand, draw)
            true = left + right if sign == "+" else left - right
            if draw.random() < share:
                total = true
                call = f"{TOOL.open}print({left}{sign}{right}){TOOL.close}"
                steps.append(call + TOOL.render("ok", str(true), ""))
            else:
                total = self._write(true, draw)
                steps.append(f"{left}{sign}{right}={total}{STEP_END}")
        return "".join(steps) + f"={self._write(total, draw)}"

    def _write(self, number: int, draw: random.Random) -> int:
        digits = list(str(abs(number)))
        for place, digit in enumerate(digits):
            if draw.random() < self.garble:
                # No leading zero: `07` is no number to Python; the demonstrator is careless, not ignorant.
                choices = "123456789" if place == 0 and len(digits) > 1 else "0123456789"
                digits[place] = draw.choice(choices.replace(digit, ""))
        written = int("".join(digits))
        return -written if number < 0 else written
