"""GSM8K for a model of 135 million parameters, which is to compute in Python.

`task` has worked examples that show a model how. `bare` has none, for a model that was warmed up: its prompts are a
quarter as long.
"""

from __future__ import annotations

from dataclasses import replace

from ctpo.tasks import chain_sums, get_task

TOOL = replace(chain_sums.TOOL, max_result_chars=32)  # its form, whose output comes back inside the turn
EXAMPLES = (
    *TOOL.example(
        "Mia has 3 boxes with 12 pencils each. She gives 7 pencils away. How many does she have left?",
        "pencils = 3 * 12\nprint(pencils - 7)",
        "29",
    ),
    *TOOL.example(
        "A ticket costs $8, and children pay half of that. What do 2 adults and 5 children pay together?",
        "child = 8 // 2\nprint(2 * 8 + 5 * child)",
        "36",
    ),
    *TOOL.example(
        "Ben reads 15 pages a day. A book has 240 pages, and he has read 90. How many more days does he need?",
        "left = 240 - 90\nprint(left // 15)",
        "10",
    ),
)

task = replace(
    get_task("gsm8k"),
    system="Use Python.",
    examples=EXAMPLES,
    tool=TOOL,
)
bare = replace(task, examples=())
