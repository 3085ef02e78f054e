"""Tokens per CPU-second of our engine against `model.generate`, plain and with tool turns.

    python benchmarks/rollout.py [--model smollm2] [--batch 16] [--samples 4] [--tokens 64] [--dtype float32] [--json]

Plain: prompts of different lengths, several samples each, every response of the full length. Tools: the same
responses, broken twice by a tool's output; the peer generates turn by turn, as one does with `generate`: each turn a
new call over the whole conversation so far, all rows waiting for the last. Both sides decode greedily, in interleaved
rounds; the median counts. Response tokens count, the tool's not.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ctpo.evaluation.model import load_model
from ctpo.rollout import TransformersEngine
from ctpo.rollout.decoders import decoder_for
from ctpo.rollout.engine import Sampling

OUTPUT_TOKENS = 40
"""Length of a tool's output."""


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    model, tokenizer = load_model(args.model, dtype=args.dtype)
    model.generation_config.eos_token_id = None  # every response has the full length, so that work is equal
    distinct = _prompts(-(-args.batch // args.samples), model.get_input_embeddings().num_embeddings)
    prompts = [prompt for prompt in distinct for _ in range(args.samples)][: args.batch]
    decoder_for(model, 0)  # tries the model once a process; not a cost of a rollout
    engine = TransformersEngine(model, tokenizer, eos_token_ids=[-1])
    cases: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "plain": (
            lambda: engine.generate(prompts, Sampling(max_new_tokens=args.tokens, temperature=0.0)),
            lambda: _generate(model, prompts, args.tokens),
        ),
        "tools": (
            lambda: _ours_with_turns(model, prompts, _turns(args.batch, args.tokens)),
            lambda: _generate_with_turns(model, prompts, _turns(args.batch, args.tokens)),
        ),
    }
    results = {}
    for name, (ours, theirs) in cases.items():
        figures = results[name] = _compare(ours, theirs, args)
        if not args.json:
            rates = f"ctpo {figures['ctpo']:.1f}, generate {figures['generate']:.1f} tokens per CPU-second"
            print(f"{name:6} {rates}: {figures['ratio']:.2f}x", flush=True)
    if args.json:
        print(json.dumps({**vars(args), "results": results}, indent=2))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--samples", type=int, default=4, help="responses to each prompt, as in RL")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _compare(
    ours: Callable[[], object], theirs: Callable[[], object], args: argparse.Namespace
) -> dict[str, float]:
    spent: dict[str, list[float]] = {"ctpo": [], "generate": []}
    for _ in range(args.rounds):
        for name, call in (("ctpo", ours), ("generate", theirs)):
            started = time.process_time()
            call()
            spent[name].append(time.process_time() - started)
    rates = {name: args.batch * args.tokens / statistics.median(times) for name, times in spent.items()}
    return {**rates, "ratio": rates["ctpo"] / rates["generate"]}


def _prompts(batch: int, vocabulary: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(0)
    lengths = [60 + 5 * (i % 9) for i in range(batch)]
    return [torch.randint(vocabulary // 2, (length,), generator=draw).tolist() for length in lengths]


def _turns(batch: int, tokens: int) -> list[list[int]]:
    """For each row the lengths of its three turns: different, so that rows call their tools at different times."""
    rows = []
    for i in range(batch):
        first = tokens // 8 + i % (tokens // 4)
        second = tokens // 8 + (3 * i) % (tokens // 4)
        rows.append([first, second, tokens - first - second])
    return rows


@torch.no_grad()
def _generate(model: Any, rows: Sequence[Sequence[int]], tokens: int) -> Any:
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    out = model.generate(ids, attention_mask=mask, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
    return out[:, width:]


def _generate_with_turns(model: Any, prompts: list[list[int]], turns: list[list[int]]) -> None:
    rows = [list(prompt) for prompt in prompts]
    for turn in range(3):
        longest = max(lengths[turn] for lengths in turns)
        new = _generate(model, rows, longest).tolist()
        for i, lengths in enumerate(turns):
            rows[i] += new[i][: lengths[turn]] + ([1] * OUTPUT_TOKENS if turn < 2 else [])


@torch.no_grad()
def _ours_with_turns(model: Any, prompts: list[list[int]], turns: list[list[int]]) -> None:
    """The engine's decoder with the calls' places given, since no model here calls at places known beforehand."""
    decoder = decoder_for(model, 0)
    logits = decoder.start(prompts)
    written = [0] * len(prompts)
    breaks = [{lengths[0], lengths[0] + lengths[1]} for lengths in turns]
    total = sum(turns[0])
    for step in range(total):
        tokens = logits.argmax(-1)
        written = [count + 1 for count in written]
        asking = [i for i, count in enumerate(written) if count in breaks[i]]
        if asking:
            decoder.feed(asking, [[int(tokens[i]), *[1] * (OUTPUT_TOKENS - 1)] for i in asking])
            tokens[asking] = 1
        if step + 1 < total:
            logits = decoder.step(tokens, torch.ones(len(prompts)))


if __name__ == "__main__":
    main()
