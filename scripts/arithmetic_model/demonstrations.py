"""A careless demonstrator, whose mistakes leave something for reinforcement learning to improve."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from ctpo.tasks.arithmetic.task import TOOL, terms
from ctpo.tasks.arithmetic.tokenizer import EOS, STEP_END
from ctpo.tasks.arithmetic.worksheet import chains


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
    with_tool: float = 0.55
    """The probability that a worksheet is begun with the tool."""
    stays: float = 0.75
    """In a worksheet, the probability that the tool is used after a step with it."""
    returns: float = 0.30
    """In a worksheet, the probability that the tool is used after a step without it."""

    def __post_init__(self) -> None:
        given = (*self.tool_shares, self.garble, self.with_tool, self.stays, self.returns)
        if not self.tool_shares or not all(0 <= p <= 1 for p in given):
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
        last = len(self.tool_shares) - 1
        return self._solve(prompt, draw, lambda index: draw.random() < self.tool_shares[min(index, last)])

    def _solve(self, prompt: str, draw: random.Random, uses_tool: Callable[[int], bool]) -> str:
        (_, total), *rest = terms(prompt)
        steps = []
        for index, (sign, operand) in enumerate(rest):
            left, right = self._write(total, draw), self._write(operand, draw)
            true = left + right if sign == "+" else left - right
            if uses_tool(index):
                total = true
                call = f"{TOOL.open}print({left}{sign}{right}){TOOL.close}"
                steps.append(call + TOOL.render("ok", str(true), ""))
            else:
                total = self._write(true, draw)
                steps.append(f"{left}{sign}{right}={total}{STEP_END}")
        return "".join(steps) + f"={self._write(total, draw)}"

    def worksheet(self, first: str, count: int, draw: random.Random) -> str:
        """The response to a worksheet of `count` problems: the solutions, between them what the environment says.

        Whether the demonstrator computes with the tool lasts: it mostly does what it did in the step before. So an
        early choice matters for all that follows.
        """
        sheet = chains(first, count)
        with_tool = draw.random() < self.with_tool

        def uses_tool(_: int) -> bool:
            nonlocal with_tool
            with_tool = draw.random() < (self.stays if with_tool else self.returns)
            return with_tool

        solutions = [self._solve(prompt, draw, uses_tool) for prompt, _ in sheet]
        dealt = [EOS + STEP_END + prompt for prompt, _ in sheet[1:]]
        return "".join(text for pair in zip(solutions, [*dealt, ""], strict=True) for text in pair)

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
