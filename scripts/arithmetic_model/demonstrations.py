"""A careless demonstrator, whose mistakes leave something for reinforcement learning to improve."""

from __future__ import annotations

import random
from dataclasses import dataclass

from ctpo.tasks.arithmetic.task import TOOL, terms
from ctpo.tasks.arithmetic.tokenizer import STEP_END


@dataclass(frozen=True, kw_only=True)
class Demonstrator:
    """Solves chains of sums, with mistakes and with or without the tool.

    Raises:
        ValueError: if a setting is no probability.
    """

    tool_shares: tuple[float, ...] = (1.0, 0.95, 0.82, 0.67, 0.47)
    """For each step, the probability that it is computed by Python and not by the demonstrator itself. The last one
    holds for all later steps. If it is below one half, the likeliest completion does its last steps without Python. So
    before reinforcement learning, greedy decoding fails as well."""
    garble: float = 0.006
    """The probability that a digit which the demonstrator writes is replaced by a random one."""

    def __post_init__(self) -> None:
        if not self.tool_shares or not all(0 <= p <= 1 for p in (*self.tool_shares, self.garble)):
            raise ValueError(
                f"tool_shares={self.tool_shares!r}, garble={self.garble!r}: give probabilities from 0 to 1, "
                "at least one tool share"
            )

    def solve(self, prompt: str, draw: random.Random) -> str:
        """One solution of a prompt, tool results included.

        A step is `<py>print(3+67)</py><out>70</out>` or `3+67=70;`, for which the model writes about as many tokens. A
        mistake has consequences: each step starts from the written result of the step before, and the tool computes
        what is written.

        Args:
            prompt: such as `3+67-29=`.
            draw: the source of randomness.
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
        """The number as the demonstrator writes it, perhaps with wrong digits."""
        digits = list(str(abs(number)))
        for place, digit in enumerate(digits):
            if draw.random() < self.garble:
                # No leading zero, because `07` is not a number in Python. The demonstrator is careless, not ignorant.
                choices = "123456789" if place == 0 and len(digits) > 1 else "0123456789"
                digits[place] = draw.choice(choices.replace(digit, ""))
        written = int("".join(digits))
        return -written if number < 0 else written
