"""The whole method in one readable loop: sample with a tool, judge, weigh by prefix ratios, update.

    python examples/loop.py                      # minutes on a laptop's CPU
    python examples/loop.py --objective grpo

What `ctpo train` does on TRL, without TRL: no checkpoints, no several processes, nothing skipped or shared.
Shape suffixes: B responses, T response tokens, L prompt and response tokens, V vocabulary.
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

from ctpo.evaluation.heldout import evaluate
from ctpo.objectives import Objective, Output, preset
from ctpo.objectives.advantages import group_normalised
from ctpo.rollout import Rollout, TransformersEngine
from ctpo.rollout.sampling import Sampling
from ctpo.rollout.tools import open_tools
from ctpo.tasks import get_task
from ctpo.tasks.arithmetic import model_path

PROMPTS, SAMPLES, UPDATES = 64, 8, 16
"""A rollout batch: 64 prompts x 8 responses, for 16 updates of 4 prompts each. The 2nd to 16th are off-policy."""


def main() -> None:
    """Train the embedded model, and say what it can do after each rollout batch."""
    args = arguments()
    torch.set_num_threads(1)  # a model this small is slower on more
    torch.manual_seed(args.seed)
    task = get_task("arithmetic")
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    engine = TransformersEngine(model, tokenizer)
    sampling = Sampling(max_new_tokens=96)
    objective = preset(args.objective)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.0)
    steps = args.rollout_batches * UPDATES
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)
    problems = task.problems("train", args.rollout_batches * PROMPTS, args.seed)
    held_out = task.problems("test", args.eval_problems, 0)

    with open_tools(task) as tools:  # a sandbox: model-written programs are hostile
        for batch in range(args.rollout_batches):
            asked = [p for p in problems[batch * PROMPTS : (batch + 1) * PROMPTS] for _ in range(SAMPLES)]
            rollouts = engine.generate([tokenizer.encode(p.prompt) for p in asked], sampling, tools=tools)
            texts = [tokenizer.decode(r.completion_ids, skip_special_tokens=True) for r in rollouts]
            rewards_B = torch.tensor(
                [float(task.check(x, p.answer)) for x, p in zip(texts, asked, strict=True)]
            )
            advantages_B = group_normalised(rewards_B, group=SAMPLES)
            clipped = []
            for i in range(0, len(rollouts), len(rollouts) // UPDATES):  # whole groups
                share = slice(i, i + len(rollouts) // UPDATES)
                out = update(model, objective, optimizer, rollouts[share], advantages_B[share])
                schedule.step()
                clipped.append(out.stats["clip_fraction"].item())
            found = evaluate(engine, task, held_out, sampling, tools=tools)
            print(
                f"batch {batch + 1:2}  reward {rewards_B.mean():.3f}  clipped {sum(clipped) / UPDATES:.1%}  "
                f"held-out pass@1 {found.accuracy:.3f} ± {found.standard_error:.3f}",
                flush=True,
            )


def update(
    model: torch.nn.Module,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    rollouts: list[Rollout],
    advantages_B: Tensor,
) -> Output:
    """One optimizer step, and what the objective said."""
    # The policy that sampled is the anchor. Its log-probs were kept while sampling: nothing is recomputed.
    old_BT = padded([torch.tensor(r.logps) for r in rollouts])
    # 1 where the model chose the token: the tool's output is in the context, not in the loss.
    mask_BT = padded([torch.tensor(r.response_mask, dtype=torch.bool) for r in rollouts])
    out = objective(response_logps(model, rollouts), old_BT, advantages_B, mask_BT)
    optimizer.zero_grad()
    out.loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return out


def response_logps(model: torch.nn.Module, rollouts: list[Rollout]) -> Tensor:
    """Log-probs [B, T] of the response tokens under the model as it is now."""
    ids_BL = padded([torch.tensor(r.prompt_ids + r.completion_ids) for r in rollouts])
    # Padding stands on the right, where causal attention never looks back from: it needs no mask.
    logits_BLV = model(input_ids=ids_BL).logits
    logps_BL = -torch.nn.functional.cross_entropy(
        logits_BLV[:, :-1].flatten(0, 1), ids_BL[:, 1:].flatten(), reduction="none"
    ).view(len(rollouts), -1)  # at position i, of token i + 1
    return padded(
        [
            row[len(r.prompt_ids) - 1 :][: len(r.completion_ids)]
            for row, r in zip(logps_BL, rollouts, strict=True)
        ]
    )


def padded(rows: list[Tensor]) -> Tensor:
    """Rows of one length each, zeros on the right."""
    return pad_sequence(rows, batch_first=True)


def arguments() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(description="The whole method in one loop, without TRL.")
    parser.add_argument("--objective", default="ctpo", help="a preset (default ctpo)")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--rollout-batches", type=int, default=16)
    parser.add_argument("--eval-problems", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
