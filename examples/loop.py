"""The whole method in one loop that you can read from top to bottom: sample with a tool, judge, update off-policy.

    python examples/loop.py                      # some minutes on a laptop's CPU
    python examples/loop.py --objective grpo     # the same with another objective

A tiny Llama that ships with the package learns to compute sums with Python. For every rollout batch the loop
1) samples 8 responses to each of 64 prompts, running the programs that the model writes in a sandbox,
2) rewards each response with 1 if its answer is right and 0 if not,
3) turns the rewards of each prompt's responses into advantages,
4) takes 16 optimizer steps on these responses, of which all but the first are off-policy,
5) measures the accuracy on problems that it never trains on, and prints a line.

This is `ctpo train` without TRL. To keep it readable, we left out:
- checkpoints and resuming: a loop of minutes can start again;
- several processes and GPUs: TRL and accelerate do that for `ctpo train`;
- gradient accumulation: a minibatch of 32 short responses fits into memory;
- the shared computation of common prompts and other speed: each row goes through the model as it is;
- a KL penalty and a reference model: the trust region of the objective is what keeps the policy close.

Shape legend: B responses, T response tokens, L prompt and response tokens, V vocabulary.
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer

from ctpo.evaluation import evaluate
from ctpo.objectives import Objective, Output, preset
from ctpo.objectives.advantages import group_normalised
from ctpo.rollout import Rollout, Sampling, TransformersEngine
from ctpo.rollout.tools import open_tools
from ctpo.tasks import get_task
from ctpo.tasks.arithmetic import model_path

PROMPTS, SAMPLES, UPDATES = 64, 8, 16
"""A rollout batch has 64 prompts × 8 responses. Each of its 16 updates takes the responses to 4 prompts."""


def main() -> None:
    """Train the embedded model, and print what it can do after each rollout batch."""
    args = arguments()
    torch.set_num_threads(1)  # a model this small is slower with more threads
    torch.manual_seed(args.seed)

    # The task gives problems, a tool, and a check of answers.
    task = get_task("arithmetic")
    problems = task.problems("train", args.rollout_batches * PROMPTS, args.seed)
    held_out = task.problems("test", args.eval_problems, 0)
    print(f"a problem: {problems[0].prompt}   its answer: {problems[0].answer}")

    # The model, and the engine that samples from it.
    tokenizer = AutoTokenizer.from_pretrained(model_path())
    model = AutoModelForCausalLM.from_pretrained(model_path(), dtype=torch.float32)
    engine = TransformersEngine(model, tokenizer)
    sampling = Sampling(max_new_tokens=96)
    print(f"the model: {model.num_parameters():,} parameters; the objective: {args.objective}")

    objective = preset(args.objective)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.0)
    steps = args.rollout_batches * UPDATES
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=steps)

    with open_tools(task) as tools:  # a sandbox, because programs written by a model are untrusted
        for batch in range(args.rollout_batches):
            started = time.perf_counter()

            # Sample. The engine keeps the log-prob of every token that it draws.
            drawn = problems[batch * PROMPTS : (batch + 1) * PROMPTS]
            repeated = [problem for problem in drawn for _ in range(SAMPLES)]
            rollouts = engine.generate(
                [tokenizer.encode(p.prompt) for p in repeated], sampling, partner=tools
            )

            # Judge. The advantage of a response is its reward relative to the other responses to its prompt.
            texts = [tokenizer.decode(r.completion_ids, skip_special_tokens=True) for r in rollouts]
            rewards_B = torch.tensor(
                [float(task.check(x, p.answer)) for x, p in zip(texts, repeated, strict=True)]
            )
            advantages_B = group_normalised(rewards_B, group=SAMPLES)
            if batch == 0:
                print(f"its first response: {texts[0]}   reward {rewards_B[0]:.0f}")

            # Update. With every step the model moves away from the policy that sampled.
            clipped = []
            size = len(rollouts) // UPDATES  # whole groups
            for i in range(0, len(rollouts), size):
                out = update(model, objective, optimizer, rollouts[i : i + size], advantages_B[i : i + size])
                schedule.step()
                clipped.append(out.stats["clip_fraction"].item())

            evaluation = evaluate(engine, task, held_out, sampling, tools=tools)
            print(
                f"batch {batch + 1:2}  reward {rewards_B.mean():.3f}  clipped {sum(clipped) / UPDATES:.1%}  "
                f"held-out pass@1 {evaluation.accuracy:.3f} ± {evaluation.standard_error:.3f}  "
                f"{time.perf_counter() - started:.1f} s",
                flush=True,
            )


def update(
    model: torch.nn.Module,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    rollouts: list[Rollout],
    advantages_B: Tensor,
) -> Output:
    """Take one optimizer step, and return the output of the objective."""
    # The anchor is the policy that sampled. Its log-probs were kept while sampling, so nothing is recomputed.
    old_logps_BT = padded([torch.tensor(r.logps) for r in rollouts])
    # True where the model chose the token. The tool's output is part of the context but not of the loss.
    response_mask_BT = padded([torch.tensor(r.response_mask, dtype=torch.bool) for r in rollouts])
    out = objective(response_logps(model, rollouts), old_logps_BT, advantages_B, response_mask_BT)
    optimizer.zero_grad()
    out.loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return out


def response_logps(model: torch.nn.Module, rollouts: list[Rollout]) -> Tensor:
    """The log-probs [B, T] of the response tokens under the model as it is now, in nats."""
    ids_BL = padded([torch.tensor(r.prompt_ids + r.completion_ids) for r in rollouts])
    # Padding is on the right, where causal attention never looks. So no attention mask is needed.
    logits_BLV = model(input_ids=ids_BL).logits
    # The logits at position i predict token i + 1.
    logps_BL = -torch.nn.functional.cross_entropy(
        logits_BLV[:, :-1].flatten(0, 1), ids_BL[:, 1:].flatten(), reduction="none"
    ).view(len(rollouts), -1)
    return padded(
        [
            row[len(r.prompt_ids) - 1 :][: len(r.completion_ids)]
            for row, r in zip(logps_BL, rollouts, strict=True)
        ]
    )


def padded(rows: list[Tensor]) -> Tensor:
    """The rows as one tensor, filled up with zeros on the right."""
    return pad_sequence(rows, batch_first=True)


def arguments() -> argparse.Namespace:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(description="The whole method in one loop, without TRL.")
    parser.add_argument("--objective", default="ctpo", help="a preset (default %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=3e-4, help="of AdamW (default %(default)s)")
    parser.add_argument("--rollout-batches", type=int, default=16, help="default %(default)s")
    parser.add_argument("--eval-problems", type=int, default=1024, help="held out (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default %(default)s")
    return parser.parse_args()


if __name__ == "__main__":
    main()
