"""Which responses of a rollout batch go into which update of verl, and to which process. Nothing here imports verl.

verl 0.9.1 leaves responses in the order in which they were finished, and cuts that into updates. So the first update
would have the quick responses and the last one the slow ones, which are not alike: here, slow ones call more tools and
are right more often. Our own trainer deals out whole groups, in an order that says nothing about them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def dealt(keys: Sequence[str], tags: Sequence[Mapping[str, Any]], updates: int, processes: int) -> list[int]:
    """The places of a batch's responses in a new order: whole groups per update, and padding last.

    verl gives each process a part of equal length in this order, and each process cuts its part into updates. The
    responses of one update are dealt out to processes so that these get like numbers of tokens.

    Args:
        keys: verl's, which begin with the random name of the response's prompt.
        tags: verl's, with `seq_len` in tokens, and `is_padding` if a row only fills up the batch.
        updates: taken on the batch in one pass. They divide the number of rows.
        processes: that train. They divide the number of rows of an update.

    Example:
        >>> dealt(["b_0", "a_0", "b_1", "a_1"], [{"seq_len": 5}] * 4, updates=2, processes=1)
        [1, 3, 0, 2]
    """
    order = sorted(range(len(keys)), key=lambda row: (bool(tags[row].get("is_padding")), keys[row]))
    size = len(order) // updates
    shares: list[list[int]] = [[] for _ in range(processes)]
    for update in range(updates):
        rows = order[update * size : (update + 1) * size]
        longest_first = sorted(rows, key=lambda row: -int(tags[row]["seq_len"]))
        for place, row in enumerate(longest_first):
            lap, seat = divmod(place, processes)
            shares[seat if lap % 2 == 0 else processes - 1 - seat].append(row)
    return [row for share in shares for row in share]
