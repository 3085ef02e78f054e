"""CPU-seconds and peak memory of one training step against TRL's own GRPOTrainer, by phase.

    python benchmarks/step.py [--model smollm2] [--lengths equal ragged] [--sides stock ctpo] [--rounds 1] [--json]
    python benchmarks/step.py --sides ctpo ctpo-share_prompts ...    one lever off
    python benchmarks/step.py --check                                loss and gradient, every lever against plain

One step: 8 prompts x 8 samples are generated, scored, and one update is taken. Responses have 64 tokens, or 16 to 64,
the same on both sides; every response has an advantage, except where --zero-groups says otherwise. Each step runs in
a process of its own (peak memory is a process's), sides in turn; medians count. Sides: `stock` is GRPOTrainer in
float32 with its defaults; `stock-bf16` with all its defaults, which autocast to bfloat16; `stock-fast` without
checkpointing; `ctpo` ours with its defaults, `ctpo-KEY` with that key off.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

LEVERS = {
    "pack_rows": {"pack_rows": False},
    "share_prompts": {"share_prompts": False},
    "completion_head": {"completion_head": False},
    "skip_zero_advantage": {"skip_zero_advantage": False},
    "max_tokens_per_micro_batch": {"max_tokens_per_micro_batch": 0},
    "checkpointing": {"gradient_checkpointing": True},
    "all": {"completion_head": False, "skip_zero_advantage": False},
}
"""Side `ctpo-KEY`: the settings that take the lever away (`checkpointing`: TRL's default put back)."""
STOCK: dict[str, dict[str, Any]] = {
    "stock": {"bf16": False},
    "stock-bf16": {},
    "stock-fast": {"bf16": False, "gradient_checkpointing": False},
}
PROMPTS, SAMPLES, LONGEST = 8, 8, 64


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    if args.check:
        print(json.dumps(_check(args), indent=2))
    elif args.child:
        print("RESULT " + json.dumps(_step(args, args.sides[0], args.lengths[0])), flush=True)
    else:
        _compare(args)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--lengths", nargs="+", default=["equal", "ragged"], choices=["equal", "ragged"])
    parser.add_argument("--sides", nargs="+", default=["stock", "ctpo"])
    parser.add_argument("--rows", type=int, default=64, help="per_device_train_batch_size on both sides")
    parser.add_argument("--zero-groups", type=int, default=0, help="prompts whose samples all get one reward")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _compare(args: argparse.Namespace) -> None:
    found: dict[str, dict[str, list[dict[str, float]]]] = {name: {} for name in args.lengths}
    for _ in range(args.rounds):
        for lengths in args.lengths:
            for side in args.sides:
                figures = _in_a_process(args, side, lengths)
                found[lengths].setdefault(side, []).append(figures)
                if not args.json:
                    shown = "  ".join(f"{name} {value:.2f}" for name, value in figures.items())
                    print(f"{lengths:6} {side:28} {shown}", flush=True)
    summary = {lengths: _summary(sides) for lengths, sides in found.items()}
    if args.json:
        print(json.dumps({**vars(args), "results": summary}, indent=2))
    else:
        for lengths, figures in summary.items():
            print(lengths, {name: value for name, value in figures.items() if name.endswith("_ratio")})


def _in_a_process(args: argparse.Namespace, side: str, lengths: str) -> dict[str, float]:
    own = {"model": args.model, "rows": args.rows, "zero-groups": args.zero_groups, "threads": args.threads}
    options = [f"--{name}={value}" for name, value in own.items()]
    command = [sys.executable, __file__, "--child", "--sides", side, "--lengths", lengths, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    results = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if not results:
        sys.exit(f"{side} failed:\n{done.stderr[-3000:]}")
    figures: dict[str, float] = json.loads(results[-1].removeprefix("RESULT "))
    return figures


def _summary(sides: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    medians: dict[str, Any] = {
        side: {name: statistics.median(run[name] for run in runs) for name in runs[0]}
        for side, runs in sides.items()
    }
    if "stock" in medians and "ctpo" in medians:
        for ours, theirs in (("cpu_seconds", "step_s"), ("peak_rss", "peak_rss_gb")):
            medians[f"{ours}_ratio"] = medians["stock"][theirs] / medians["ctpo"][theirs]
    return medians


# -- one step in this process ------------------------------------------------------------------------------------


def _step(args: argparse.Namespace, side: str, lengths: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(args, side, lengths, folder)
        clock = _clock(trainer)
        trainer.train()
    step, generation, optimizer = (clock[name] for name in ("step", "generation", "optimizer"))
    training = step - generation - optimizer
    figures = {"step_s": step, "generation_s": generation, "training_s": training, "optimizer_s": optimizer}
    figures["peak_rss_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    if side.startswith("ctpo"):
        figures["peak_share"] = _flops(trainer) / training / _peak_flops()
    return figures


def _trainer(args: argparse.Namespace, side: str, lengths: str, folder: str) -> Any:
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOConfig, GRPOTrainer

    from ctpo import CTPOConfig, CTPOTrainer
    from ctpo.evaluation.model import load_model

    model, tokenizer = load_model(args.model, dtype="float32")
    planned = _lengths(lengths)
    keys: dict[str, Any] = {
        "output_dir": folder,
        "per_device_train_batch_size": args.rows,
        "gradient_accumulation_steps": PROMPTS * SAMPLES // args.rows,
        "num_generations": SAMPLES,
        "max_completion_length": LONGEST,
        "max_steps": 1,
        "learning_rate": 1e-6,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
    }
    keys["generation_kwargs"] = {"suppress_tokens": [tokenizer.eos_token_id]} if side in STOCK else None
    ours = not side.startswith("stock")
    settings = LEVERS.get(side.removeprefix("ctpo-"), {}) if ours else STOCK[side]
    trainer = (CTPOTrainer if ours else GRPOTrainer)(
        model=model,
        reward_funcs=_rewards(args.zero_groups),
        args=(CTPOConfig if ours else GRPOConfig)(**keys, **settings),
        train_dataset=Dataset.from_list([{"prompt": text} for text in _prompts()]),
        processing_class=tokenizer,
        **({"rollout_func": _rollout_func(planned)} if ours else {}),
    )
    trainer.remove_callback(PrinterCallback)
    if not ours:
        trainer.model.generate = _stopping_at(trainer.model.generate, planned)
    return trainer


def _prompts() -> list[str]:
    """Eight texts of some 60 to 90 tokens, as they come from no benchmark."""
    words = "river stone lantern seven copper market window winter engine paper garden signal".split()
    draw = torch.Generator().manual_seed(0)
    picks = [torch.randint(len(words), (50 + 4 * i,), generator=draw).tolist() for i in range(PROMPTS)]
    return [" ".join(words[pick] for pick in row) + "." for row in picks]


def _lengths(kind: str) -> torch.Tensor:
    rows = PROMPTS * SAMPLES
    draw = torch.Generator().manual_seed(1)
    ragged = torch.randint(LONGEST // 4, LONGEST + 1, (rows,), generator=draw)
    return ragged if kind == "ragged" else torch.full((rows,), LONGEST)


def _rewards(zero_groups: int) -> Callable[..., list[float]]:
    def reward(prompts: list[str], **_: Any) -> list[float]:
        return [0.0 if i // SAMPLES < zero_groups else float(i % SAMPLES) for i in range(len(prompts))]

    return reward


def _rollout_func(planned: torch.Tensor) -> Callable[..., dict[str, Any]]:
    """Ours, each response ending where it is planned to and nowhere else."""
    from ctpo.rollout import engine as module
    from ctpo.training.rollout import make_rollout_func

    class Planned(module.Batch):
        def end(self, ended: torch.Tensor) -> None:
            super().end(self._length_B[self._alive] >= planned[self._alive])

    module.Batch = Planned  # type: ignore[misc]
    return make_rollout_func(None)


def _stopping_at(generate: Callable[..., Any], planned: torch.Tensor) -> Callable[..., Any]:
    """TRL's, likewise: a row ends one token early, and the end-of-text that pads it is its last."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    class Planned(StoppingCriteria):  # type: ignore[misc]
        start: int | None = None

        def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            self.start = input_ids.shape[1] - 1 if self.start is None else self.start
            done: torch.Tensor = input_ids.shape[1] - self.start >= planned - (planned < LONGEST).long()
            return done

    def generate_planned(*args: Any, **kwargs: Any) -> Any:
        return generate(*args, **kwargs, stopping_criteria=StoppingCriteriaList([Planned()]))

    return generate_planned


def _clock(trainer: Any) -> dict[str, float]:
    """CPU-seconds of the step and its phases, filled while the trainer trains."""
    from transformers import TrainerCallback

    spent = dict.fromkeys(("step", "generation", "optimizer"), 0.0)
    began: dict[str, float] = {}

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            began["step"] = time.process_time()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            spent["step"] += time.process_time() - began["step"]

        def on_pre_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            began["optimizer"] = time.process_time()

        def on_optimizer_step(self, *args: Any, **kwargs: Any) -> None:
            spent["optimizer"] += time.process_time() - began["optimizer"]

    generate = trainer._generate

    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.process_time()
        try:
            return generate(*args, **kwargs)
        finally:
            spent["generation"] += time.process_time() - started

    trainer._generate = timed
    trainer.add_callback(Clock())
    return spent


def _flops(trainer: Any) -> float:
    """Of the products with weights in forward and backward (attention's own left out), for the tokens that must be
    computed: prompts once, completions but for their last token; the head for every completion token."""
    from ctpo.training.microbatch import loss_mask, rows_of

    head = trainer.model.get_output_embeddings().weight.numel()
    body = sum(p.numel() for p in trainer.model.parameters()) - head
    total = 0.0
    for part in trainer._buffered_inputs:
        rows = rows_of(part, loss_mask(part))
        groups, prompts, reach = rows.groups(), rows.prompt_lengths(), rows.reach()
        once = sum(int(prompts[groups == group][0]) for group in groups.unique())
        total += 6 * (body * (once + int((reach - 1).sum())) + head * int(rows.wanted.sum()))
    return total


def _peak_flops() -> float:
    """Of a 1024³ product in float32, best of ten."""
    left, right = torch.randn(2, 1024, 1024).unbind()
    seconds = []
    for _ in range(10):
        started = time.process_time()
        left @ right
        seconds.append(time.process_time() - started)
    return 2 * 1024**3 / min(seconds)


# -- equality ----------------------------------------------------------------------------------------------------


def _check(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Relative differences on a ragged micro-batch in float32: loss and gradient with levers on against the plain
    pass, and how far log-probs and their gradient under fixed weights are from float64 for each pass.

    CTPO's ratio multiplies a row's tokens, so it gathers the log-probs' rounding; the second part is free of that.
    """
    from ctpo.training.microbatch import make_scorer

    args.rows, args.zero_groups = PROMPTS * SAMPLES, 0
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(args, "ctpo-all", "ragged", folder)
        trainer.current_gradient_accumulation_steps = 1
        inputs = _fake_batch(trainer)
        found = {}
        for name, off in {"plain": LEVERS["all"], "all on": {}, **LEVERS}.items():
            if name in ("all", "checkpointing"):
                continue
            default = {"max_tokens_per_micro_batch": 150}
            everything = {
                key: True for levers in LEVERS.values() for key in levers if hasattr(trainer.args, key)
            }
            for key, value in {**everything, "gradient_checkpointing": False, **default, **off}.items():
                setattr(trainer.args, key, value)
            trainer.scorer = make_scorer(trainer)
            trainer.model.train()
            trainer.model.zero_grad()
            loss = trainer._compute_loss(trainer.model, inputs)
            loss.backward()
            gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters()]).double()
            if name == "plain":
                plain_loss, plain = float(loss.detach()), gradient
                continue
            found[name if name == "all on" else f"without {name}"] = {
                "loss": abs(float(loss.detach()) / plain_loss - 1),
                "gradient": float((gradient - plain).norm() / plain.norm()),
            }
        return {**found, **_against_float64(trainer, inputs)}


def _against_float64(trainer: Any, inputs: dict[str, Any]) -> dict[str, dict[str, float]]:
    from ctpo.training.microbatch import rows_of
    from ctpo.training.scoring.trial import one_by_one

    model, mask = trainer.model, inputs["completion_mask"].bool()
    rows = rows_of(inputs, mask)
    weight = torch.randn(mask.shape, generator=torch.Generator().manual_seed(3)) * mask
    ids = torch.cat([rows.prompt_ids, rows.completion_ids], dim=1)
    attention = torch.cat([rows.prompt_mask, rows.completion_mask], dim=1)

    def measured(logps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad()
        (logps * weight.to(logps)).sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters()])
        return (logps.detach() * mask).double(), gradient.double()

    passes = {
        "plain": measured(
            super(type(trainer), trainer)._get_per_token_logps_and_entropies(
                model, ids, attention, mask.shape[1], compute_entropy=True
            )[0]
        ),
        **{way: measured(trainer.scorer.score(model, model, rows, way)[0]) for way in ("padded", "packed")},
    }
    model.double()
    true_logps, true_gradient = measured(one_by_one(model, rows, trainer.temperature))
    return {
        f"{way} from float64": {
            "log-prob": float((logps - true_logps).abs().max()),
            "sum over a row": float((logps - true_logps).sum(dim=1).abs().max()),
            "gradient": float((gradient - true_gradient).norm() / true_gradient.norm()),
        }
        for way, (logps, gradient) in passes.items()
    }


def _fake_batch(trainer: Any) -> dict[str, Any]:
    """Two prompts, two samples each, anchors off the policy's log-probs, one row without advantage."""
    draw = torch.Generator().manual_seed(2)
    tokens = [trainer.processing_class(text)["input_ids"] for text in _prompts()[:5:4]]
    width = max(map(len, tokens))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in tokens]).repeat_interleave(2, 0)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in tokens]).repeat_interleave(2, 0)
    lengths = _lengths("ragged")[:4]
    longest = int(lengths.max())
    completions = torch.randint(1000, 40000, (4, longest), generator=draw)
    completion_mask = (torch.arange(longest)[None] < lengths[:, None]).long()
    inputs: dict[str, Any] = {
        "prompt_ids": ids,
        "prompt_mask": mask,
        "completion_ids": completions,
        "completion_mask": completion_mask,
        "advantages": torch.tensor([1.0, -1.0, 0.0, 0.7]),
    }
    with torch.no_grad():
        trainer.model.eval()
        logps, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, torch.cat([ids, completions], 1), torch.cat([mask, completion_mask], 1), longest
        )
    inputs["old_per_token_logps"] = logps + 0.02 * torch.randn(logps.shape, generator=draw)
    return inputs


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
