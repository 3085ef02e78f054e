"""CPU-seconds of decoding, tool and step on a task with tools, ours against TRL's own GRPOTrainer.

    python benchmarks/task.py TASK --model MODEL [--prompts 8] [--tokens 192] [--sides stock stock-bf16 ctpo] [--json]
    python benchmarks/task.py recipes/smollm2-gsm8k/task.py:bare --model runs/gsm8k-warm/model

One step samples 8 responses to each prompt, answers their tool calls in the sandbox, judges them, and takes one update.
The sides are those of `step.py`. TRL's side samples as one does with `generate`: each turn is a call with the whole
conversation so far, and all rows wait for the last. Both sides have the same prompts, tool, judge and settings of
sampling. Their draws differ, so rates compare and totals nearly do. Each step runs in a process of its own.

Figures: `decode_s` and `step_s` (scoring, forward, backward, optimizer) are CPU-seconds of the process. `tool_s` is
seconds of wall-clock time. `decoded`, `calls` and `trained` count sampled tokens, tool calls, and completion tokens of
the batch. Responses without an advantage are among the latter: they cost stock two passes, and us nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import torch
from step_cost import clock, figures_of
from step_sides import SAMPLES, STOCK

from ctpo.rollout.chat import encode_prompt
from ctpo.rollout.tools import ToolRunner, open_tools
from ctpo.rollout.turns import Turn
from ctpo.tasks import Task, get_task
from ctpo.tasks.task import reward_function
from ctpo.training.sampling.data import dataset_rows

TEMPERATURE = 0.7


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("task")
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument(
        "--tokens", type=int, default=192, help="of a response at most, tool outputs included"
    )
    parser.add_argument(
        "--sides", nargs="+", default=["stock", "stock-bf16", "ctpo"], choices=[*STOCK, "ctpo"]
    )
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        torch.set_num_threads(args.threads)
        print("RESULT " + json.dumps(_step(args, *args.sides)), flush=True)
        return
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in args.sides}
    for _ in range(args.rounds):
        for side in args.sides:
            runs[side].append(_in_a_process(args, side))
            if not args.json:
                print(side, *(f"{name} {value:.6g}" for name, value in runs[side][-1].items()), flush=True)
    summary = {side: _rates(figures) for side, figures in runs.items()}
    print(json.dumps({**vars(args), "runs": runs, "rates": summary} if args.json else summary, indent=2))


def _in_a_process(args: argparse.Namespace, side: str) -> dict[str, float]:
    given = {"model": args.model, "prompts": args.prompts, "tokens": args.tokens, "threads": args.threads}
    options = [f"--{name}={value}" for name, value in given.items()]
    return figures_of([__file__, args.task, "--child", "--sides", side, *options], side)


def _rates(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    """Medians over the rounds: tokens per CPU-second, and CPU-seconds per response of everything."""
    pairs = {"decoded_per_s": ("decoded", "decode_s"), "trained_per_s": ("trained", "step_s")}
    rates = {
        name: statistics.median(run[count] / run[seconds] for run in runs)
        for name, (count, seconds) in pairs.items()
    }
    whole = statistics.median((run["decode_s"] + run["step_s"]) / run["responses"] for run in runs)
    return {**rates, "cpu_s_per_response": whole}


def _step(args: argparse.Namespace, side: str) -> dict[str, float]:
    task = get_task(args.task)
    with open_tools(task) as tools, tempfile.TemporaryDirectory() as folder:
        if tools is None:
            sys.exit(f"task {args.task!r} has no tool; step.py measures tasks without one")
        trainer = _trainer(args, side, task, tools, folder)
        spent = clock(trainer)
        counted = _count(trainer)
        tools.reset_account()
        trainer.train()
        return {
            "decode_s": spent["generation"],
            "step_s": spent["step"] - spent["generation"],
            "tool_s": tools.seconds,
            "calls": tools.calls,
            **counted,
        }


def _trainer(args: argparse.Namespace, side: str, task: Task, tools: ToolRunner, folder: str) -> Any:
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    from ctpo import CTPOConfig, CTPOTrainer
    from ctpo.evaluation.model import load_model
    from ctpo.training.sampling.rollout_func import make_rollout_func

    model, tokenizer = load_model(args.model, dtype="float32")
    stock = side in STOCK
    rows = args.prompts * SAMPLES
    trainer = (GRPOTrainer if stock else CTPOTrainer)(
        model=model,
        reward_funcs=reward_function(task),
        args=(GRPOConfig if stock else CTPOConfig)(
            output_dir=folder,
            per_device_train_batch_size=min(rows, 64),
            gradient_accumulation_steps=max(1, rows // 64),
            num_generations=SAMPLES,
            max_completion_length=args.tokens,
            temperature=TEMPERATURE,
            max_steps=1,
            learning_rate=1e-6,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=0,
            **STOCK.get(side, {}),
        ),
        train_dataset=Dataset.from_list(dataset_rows(task.problems("train", args.prompts, 0))),
        processing_class=tokenizer,
        rollout_func=_turn_by_turn(task, tools) if stock else make_rollout_func(tools, task=task),
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _count(trainer: Any) -> dict[str, float]:
    """How many responses and tokens the rollout function returned, filled in while the trainer trains."""
    counted = {"responses": 0, "decoded": 0, "trained": 0}
    rollout = trainer.rollout_func

    def counting(*args: Any) -> Any:
        output = rollout(*args)
        counted["responses"] += len(output["completion_ids"])
        counted["decoded"] += sum(map(sum, output["env_mask"]))
        counted["trained"] += sum(map(len, output["completion_ids"]))
        return output

    trainer.rollout_func = counting
    return counted


def _turn_by_turn(task: Task, tools: ToolRunner) -> Callable[[list[Any], Any], dict[str, Any]]:
    """A `rollout_func` as one writes it with `generate`."""

    @torch.no_grad()
    def rollout_func(prompts: list[Any], trainer: Any) -> dict[str, Any]:
        tokenizer, limit = trainer.processing_class, trainer.max_completion_length
        ids = [encode_prompt(tokenizer, task, prompt) for prompt in prompts]
        tools.begin(tokenizer, ids)
        responses: list[list[int]] = [[] for _ in ids]
        masks: list[list[int]] = [[] for _ in ids]
        unanswered: list[list[int]] = [[] for _ in ids]
        going = list(range(len(ids)))
        while going:
            longest = max(limit - len(responses[row]) for row in going)
            written = _generate(trainer, tools, [ids[row] + responses[row] for row in going], longest)
            stopped = []
            for row, (new, ended) in zip(going, written, strict=True):
                kept = new[: limit - len(responses[row])]
                responses[row] += kept
                masks[row] += [1] * len(kept)
                unanswered[row] += kept
                if not ended and len(responses[row]) < limit:
                    stopped.append(row)
            asked = [
                Turn(response=row, ids=unanswered[row], ended=False)
                for row in stopped
                if tools.listens_to(row)
            ]
            for turn, answer in zip(asked, tools.answer(asked), strict=True):
                if answer is not None:  # without one, the model goes on
                    row = turn.response
                    output = answer.ids[: limit - len(responses[row])]
                    responses[row] += output
                    masks[row] += [0] * len(output)
                    unanswered[row] = []
            going = [row for row in stopped if len(responses[row]) < limit]
        return {"prompt_ids": ids, "completion_ids": responses, "logprobs": None, "env_mask": masks}

    return rollout_func


def _generate(
    trainer: Any, tools: ToolRunner, rows: Sequence[list[int]], longest: int
) -> list[tuple[list[int], bool]]:
    """What the model adds to each row, up to a stop text or the end of its turn, and whether it was the latter."""
    tokenizer, end = trainer.processing_class, trainer.processing_class.eos_token_id
    width = max(map(len, rows))
    ids = torch.tensor([[end] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    trainer.model.eval()
    out = trainer.model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=longest,
        do_sample=True,
        temperature=TEMPERATURE,
        top_k=0,
        eos_token_id=end,
        pad_token_id=end,
        stop_strings=list(tools.stops),
        tokenizer=tokenizer,
    )
    trainer.model.train()
    results = []
    for row in out[:, width:].tolist():
        # A row that a stop text ended is padded with `end` too.
        length = row.index(end) if end in row else len(row)
        called = tokenizer.decode(row[:length]).rstrip().endswith(tools.stops)
        ended = length < len(row) and not called
        results.append((row[: length + ended], ended))
    return results


if __name__ == "__main__":
    main()
