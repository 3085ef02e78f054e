"""Sets of real numbers: intervals, inequalities, and their unions, intersections and differences."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ctpo.tasks.math import floats, forms
from ctpo.tasks.math.syntax import INFINITY, Node


class Undecided(ValueError):
    """It is not clear which of two ends is larger, or whether they are equal."""


@dataclass(frozen=True)
class Region:
    """A set of reals. `kind` is interval, union, intersection or difference.

    An interval has two ends and says for each whether it belongs to the set. A single point is a closed interval.
    """

    kind: str
    parts: tuple[Region, ...] = ()
    ends: tuple[Node, Node] = (INFINITY, INFINITY)
    closed: tuple[bool, bool] = (False, False)


MINUS_INFINITY = Node("negative", (INFINITY,))
REALS = Region("interval", ends=(MINUS_INFINITY, INFINITY))
NOTHING = Region("difference", (REALS, REALS))


def interval(low: Node, high: Node, low_closed: bool, high_closed: bool) -> Region:
    """The interval between two constants.

    Raises:
        Undecided: if an end has no real value, or if the ends are not in order.
    """
    a, b = _value(low), _value(high)
    if a > b or (a == b and not (low_closed and high_closed)):
        raise Undecided("ends that are not in order")
    if (low_closed and a == float("-inf")) or (high_closed and b == float("inf")):
        raise Undecided("infinity as an element")
    return Region("interval", ends=(low, high), closed=(low_closed, high_closed))


def bounded(operator: str, bound: Node) -> Region:
    """The numbers x with `x operator bound`, where the operator is one of < > <= >= != and =."""
    if operator == "=":
        return interval(bound, bound, True, True)
    if operator == "!=":
        return Region("difference", (REALS, bounded("=", bound)))
    if operator[0] == "<":
        return interval(MINUS_INFINITY, bound, False, operator == "<=")
    return interval(bound, INFINITY, operator == ">=", False)


def union(*parts: Region) -> Region:
    return Region("union", parts)


def intersection(*parts: Region) -> Region:
    return Region("intersection", parts)


def difference(whole: Region, removed: Region) -> Region:
    return Region("difference", (whole, removed))


def equal(one: Region, other: Region) -> bool:
    """Whether two sets have the same elements.

    The ends of all intervals cut the line into points and gaps. Each of these belongs to a set wholly or not at all.

    Raises:
        Undecided: if two ends cannot be put in order.
    """
    ends = _ordered([*_ends(one), *_ends(other)])
    places = {id(end): place for place, same in enumerate(ends) for end in same}
    cells = [2 * place for place in range(len(ends))] + [2 * place - 1 for place in range(len(ends) + 1)]
    return all(
        _contains(one, cell, places.__getitem__) == _contains(other, cell, places.__getitem__)
        for cell in cells
    )


def _contains(region: Region, cell: int, place: Callable[[int], int]) -> bool:
    """Point number p is cell 2p, and the gap below it is cell 2p - 1."""
    if region.kind == "interval":
        low, high = (2 * place(id(end)) for end in region.ends)
        if low == high:
            return cell == low and all(region.closed)
        return low < cell < high or (cell == low and region.closed[0]) or (cell == high and region.closed[1])
    inside = [_contains(part, cell, place) for part in region.parts]
    if region.kind == "union":
        return any(inside)
    return all(inside) if region.kind == "intersection" else inside[0] and not inside[1]


def _ends(region: Region) -> list[Node]:
    return (
        list(region.ends)
        if region.kind == "interval"
        else [end for part in region.parts for end in _ends(part)]
    )


def _ordered(ends: list[Node]) -> list[list[Node]]:
    if len(ends) > 60:
        raise Undecided("too many intervals")
    groups: list[list[Node]] = []
    previous = float("nan")
    for end in sorted(ends, key=_value):
        value = _value(end)
        if groups and (value == previous or abs(value - previous) < 1e-6 * (1 + abs(value))):
            if value in (float("inf"), -float("inf")) or end == groups[-1][0]:
                same: bool | None = True
            else:
                same = forms.equal(end, groups[-1][0])
            if same is None:
                raise Undecided("ends that are nearly equal")
            if not same and value == previous:
                raise Undecided("ends that are nearly equal")
            if same:
                groups[-1].append(end)
                continue
        groups.append([end])
        previous = value
    return groups


def _value(end: Node) -> float:
    value = floats.real(end)
    if value is None:
        raise Undecided("an end without a real value")
    return value
