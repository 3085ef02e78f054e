"""What evaluations of GSM8K's test split hold beside their scores, one line per figure.

    python recipes/smollm2-gsm8k/style.py runs/eval-warm runs/eval-ctpo runs/eval-grpo

The arguments are `--output` directories of `ctpo eval`. The problems come from the hub, or from the folder in the
environment variable GSM8K. README.md has the results. Whether a program is right, only a reader can say: `--gained 24`
prints the first problems that the last evaluation solves and the first does not.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any, Final

from task import calculations

from ctpo.runs.json_lines import read_json_lines

_MOST: Final = 5
"""Problems with more calculations count with those that have so many."""
_OUTPUT: Final = re.compile(r"```\n(.*)\n####")
_ASSIGNMENT: Final = re.compile(r"^([^#\n]+) = ", re.MULTILINE)
_SO: Final = re.compile(r"^# So\b", re.MULTILINE)
_LARGE_FILE: Final = 1 << 30


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("evaluations", nargs="+", type=Path)
    parser.add_argument("--gained", type=int, default=0)
    args = parser.parse_args()
    counts = calculations("test")
    read = [_responses(folder) for folder in args.evaluations]
    for folder, rows in zip(args.evaluations, read, strict=True):
        print(folder)
        for line in _figures(rows, counts):
            print("  " + line)
    first = {row["id"]: row["correct"] for row in read[0]}
    gained = [row for row in read[-1] if row["correct"] and first.get(row["id"]) is False]
    for row in gained[: args.gained]:
        print(f"\n{row['id']}, answer {row['answer']}: {row['prompt']}\n{row['completion']}")


def _responses(folder: Path) -> list[dict[str, Any]]:
    lines = read_json_lines(folder / "transcripts.jsonl", _LARGE_FILE)
    return [line.record for line in lines if line.record is not None]


def _figures(rows: list[dict[str, Any]], counts: dict[str, int]) -> list[str]:
    right: dict[int, list[bool]] = {}
    for row in rows:
        right.setdefault(min(counts[row["prompt"].strip()], _MOST), []).append(row["correct"])
    names = [_ASSIGNMENT.findall(row["completion"]) for row in rows]
    whole = [len(each) for each, row in zip(names, rows, strict=True) if row["finished"]]
    flat = [name for each in names for name in each]
    lost = [row for row in rows if _sign_lost(row)]
    return [
        *(
            f"{count}{'+' if count == _MOST else ''} calculations: {sum(each)} of {len(each)} right"
            for count, each in sorted(right.items())
        ),
        f"sign lost: {len(lost)} of {len(rows)} responses, {sum(row['correct'] for row in lost)} of "
        f"{sum(row['correct'] for row in rows)} right ones",
        f"two lines that calculate: {_share([len(each) == 2 for each in names])} of all, "
        f"{_share([count == 2 for count in whole])} of those that end",
        f"a comment that begins with So: {_share([bool(_SO.search(row['completion'])) for row in rows])}",
        f"characters of a name: {sum(map(len, flat)) / max(1, len(flat)):.1f}",
        f"ended: {_share([row['finished'] for row in rows])}",
    ]


def _sign_lost(row: dict[str, Any]) -> bool:
    """Whether the program printed the negative of what the last line names."""
    printed = _OUTPUT.findall(row["completion"])
    try:
        return float(printed[-1]) == -float(row["found"]) != 0
    except (IndexError, TypeError, ValueError):
        return False


def _share(values: list[bool]) -> str:
    return f"{100 * sum(values) / max(1, len(values)):.1f} %"


if __name__ == "__main__":
    main()
