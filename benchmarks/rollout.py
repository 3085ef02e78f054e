"""Tokens per CPU-second of our engine against `model.generate`, without and with tool turns.

    python benchmarks/rollout.py [--model smollm2] [--batch 32] [--samples 8] [--tokens 64] [--temperature 1]
                                 [--dtype float32] [--cache static] [--json]

"plain" has prompts of different lengths with several samples each, and every response has the full length. "tools" has
responses of different lengths (from half to all of it), interrupted twice by a tool's output. There the peer generates
turn by turn, as one does with `generate`: each turn is a new call with the whole conversation so far, and all rows wait
for the last. `--cache static` gives `generate` the cache of transformers that does not grow; `--only` takes one of the
two. Both sides draw their tokens in the same way (with temperature 0: greedily) and take turns; the figure is the
median. Only the response tokens count, not the tool's.
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
from ctpo.fast_cpu import fast_products
from ctpo.rollout import TransformersEngine
from ctpo.rollout.local.decoders import decoder_for
from ctpo.rollout.local.responses import SHRINK_BELOW
from ctpo.rollout.sampling import Sampling, sample_tokens

OUTPUT_TOKENS = 40
"""The length of a tool's output in tokens."""


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    model, tokenizer = load_model(args.model, dtype=args.dtype)
    model.generation_config.cache_implementation = args.cache
    model.generation_config.eos_token_id = None  # so that every response has the full length
    distinct = _prompts(-(-args.batch // args.samples), model.get_input_embeddings().num_embeddings)
    prompts = [prompt for prompt in distinct for _ in range(args.samples)][: args.batch]
    decoder_for(model, 0)  # tries the model once per process, which is no cost of a rollout
    engine = TransformersEngine(model, tokenizer, eos_token_ids=[-1])
    turns = _turns(args.batch, args.tokens)
    cases: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "plain": (
            lambda: engine.generate(
                prompts, Sampling(max_new_tokens=args.tokens, temperature=args.temperature)
            ),
            lambda: _generate(model, prompts, args.tokens, args.temperature),
        ),
        "tools": (
            lambda: _ours_with_turns(model, prompts, turns, args.temperature),
            lambda: _generate_with_turns(model, prompts, turns, args.temperature),
        ),
    }
    written = {"plain": args.batch * args.tokens, "tools": sum(map(sum, turns))}
    results = {}
    for name, (ours, theirs) in cases.items():
        if args.only not in (None, name):
            continue
        figures = results[name] = _compare(ours, theirs, args.rounds, written[name])
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
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--samples", type=int, default=8, help="responses to each prompt, as in RL")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--cache", choices=["dynamic", "static"], default="dynamic", help="of the peer")
    parser.add_argument("--only", choices=["plain", "tools"])
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def _compare(
    ours: Callable[[], object], theirs: Callable[[], object], rounds: int, tokens: int
) -> dict[str, float]:
    spent: dict[str, list[float]] = {"ctpo": [], "generate": []}
    for _ in range(rounds):
        for name, call in (("ctpo", ours), ("generate", theirs)):
            started = time.process_time()
            call()
            spent[name].append(time.process_time() - started)
    rates = {name: tokens / statistics.median(times) for name, times in spent.items()}
    return {**rates, "ratio": rates["ctpo"] / rates["generate"]}


def _prompts(batch: int, vocabulary: int) -> list[list[int]]:
    draw = torch.Generator().manual_seed(0)
    lengths = [60 + 5 * (i % 9) for i in range(batch)]
    return [torch.randint(vocabulary // 2, (length,), generator=draw).tolist() for length in lengths]


def _turns(batch: int, tokens: int) -> list[list[int]]:
    """The lengths of each row's three turns. They differ, so that rows call their tool and end at different times."""
    rows = []
    for i in range(batch):
        total = tokens - (5 * i) % (tokens // 2)
        first = total // 8 + i % (total // 4)
        second = total // 8 + (3 * i) % (total // 4)
        rows.append([first, second, total - first - second])
    return rows


@torch.no_grad()
def _generate(model: Any, rows: Sequence[Sequence[int]], tokens: int, temperature: float) -> Any:
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    how = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    out = model.generate(ids, attention_mask=mask, max_new_tokens=tokens, pad_token_id=0, **how)
    return out[:, width:]


def _generate_with_turns(
    model: Any, prompts: list[list[int]], turns: list[list[int]], temperature: float
) -> None:
    rows = [list(prompt) for prompt in prompts]
    for turn in range(3):
        longest = max(lengths[turn] for lengths in turns)
        new = _generate(model, rows, longest, temperature).tolist()
        for i, lengths in enumerate(turns):
            rows[i] += new[i][: lengths[turn]] + ([1] * OUTPUT_TOKENS if turn < 2 else [])


@torch.no_grad()
def _ours_with_turns(
    model: Any, prompts: list[list[int]], turns: list[list[int]], temperature: float
) -> None:
    """The engine's parts with given places of calls and ends, because no model here makes calls at known places."""
    with fast_products(model):
        decoder = decoder_for(model, 0)
        logits = decoder.start(prompts)
        breaks = [{lengths[0], lengths[0] + lengths[1]} for lengths in turns]
        alive = list(range(len(prompts)))
        for written in range(1, max(map(sum, turns)) + 1):
            tokens, _ = sample_tokens(logits, temperature=temperature)
            calling = [at for at, row in enumerate(alive) if written in breaks[row]]
            if calling:
                decoder.feed(calling, [[int(tokens[at]), *[1] * (OUTPUT_TOKENS - 1)] for at in calling])
                tokens[calling] = 1
            going = [at for at, row in enumerate(alive) if written < sum(turns[row])]
            if going and len(going) <= SHRINK_BELOW * len(alive):
                decoder.keep(torch.tensor(going))
                tokens, alive = tokens[going], [alive[at] for at in going]
            if going:
                logits = decoder.step(tokens, torch.ones(len(alive)))


if __name__ == "__main__":
    main()
