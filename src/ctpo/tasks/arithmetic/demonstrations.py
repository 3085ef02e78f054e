"""A sloppy demonstrator: solved chains with the mistakes that leave reinforcement learning something to mend."""

from __future__ import annotations

import random
from dataclasses import dataclass

from ctpo.tasks.arithmetic.task import TOOL, terms
from ctpo.tasks.arithmetic.tokenizer import STEP_END


@dataclass(frozen=True, kw_only=True)
class Demonstrator:
    """How careless the demonstrator is."""

    tool_share: float = 0.5
    """Probability that a step is handed to Python rather than done in the head."""
    garble: float = 0.015
    """Probability that a digit the demonstrator writes is replaced by a random one."""

    def __post_init__(self) -> None:
        for name in ("tool_share", "garble"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value!r} is not a probability; use a number from 0 to 1")

    def solve(self, prompt: str, draw: random.Random) -> str:
        """Write one solution of a prompt, tool results included.

        A step is `<py>print(3+67)</py><out>70</out>` or, of about as many tokens of the model's own, `3+67=70;`.
        A slip is carried on: each step starts from what the step before says, and the tool answers what it was
        asked.
        """
        (_, total), *rest = terms(prompt)
        steps = []
        for sign, operand in rest:
            left, right = self._write(total, draw), self._write(operand, draw)
            true = left + right if sign == "+" else left - right
            if draw.random() < self.tool_share:
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
                # No leading zero: `07` is no number to Python, and the demonstrator is careless, not ignorant.
                choices = "123456789" if place == 0 and len(digits) > 1 else "0123456789"
                digits[place] = draw.choice(choices.replace(digit, ""))
        written = int("".join(digits))
        return -written if number < 0 else written
