"""Makes the shipped model: a tiny Llama that is trained to imitate the careless demonstrator."""

from __future__ import annotations

import argparse
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from arithmetic_model.demonstrations import Demonstrator

from ctpo.tasks.arithmetic import model_path, worksheet
from ctpo.tasks.arithmetic.task import TOOL, problems
from ctpo.tasks.arithmetic.tokenizer import EOS, MAX_LENGTH, WORKSHEET_LENGTH, build_tokenizer

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

_log = logging.getLogger(__name__)
IGNORED = -100  # transformers leaves tokens with this label out of the loss


@dataclass(frozen=True, kw_only=True)
class WarmupConfig:
    """Settings of the warm-up. The defaults made the shipped model.

    Raises:
        ValueError: if `steps` or `batch` is below 1.
    """

    steps: int = 1000
    """Optimizer steps."""
    batch: int = 32
    """Demonstrations per step, each of a new problem of the train split."""
    lr: float = 8e-3
    """The peak learning rate of AdamW. It rises over the first tenth of the steps and then falls linearly to zero."""
    seed: int = 0
    """The seed of the weights, the problems and the demonstrator."""
    demonstrator: Demonstrator = field(default_factory=Demonstrator)
    """The demonstrator that the model imitates."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise ValueError(f"steps={self.steps!r}, batch={self.batch!r}: both must be at least 1")


@dataclass(frozen=True, kw_only=True)
class WorksheetConfig:
    """Settings of the training on worksheets. The defaults made the shipped model.

    Raises:
        ValueError: if `steps` or `batch` is below 1.
    """

    steps: int = 250
    """Optimizer steps."""
    batch: int = 96
    """Problems per step, each of a chain of its own."""
    counts: tuple[int, ...] = (1, 4, 12, 24, 56)
    """The lengths of worksheets, in problems. Each step has worksheets of one of them, as many as the batch takes."""
    lr: float = 4e-3
    """The peak learning rate, which rises and falls as in `WarmupConfig`."""
    seed: int = 0
    """The seed of the problems and the demonstrator."""
    demonstrator: Demonstrator = field(default_factory=lambda: Demonstrator(garble=0.004))
    """The demonstrator that the model imitates."""

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch < 1:
            raise ValueError(f"steps={self.steps!r}, batch={self.batch!r}: both must be at least 1")


def build_model(seed: int, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The untrained model. Its positions are rotary, so left padding does not change what it computes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=48,
        intermediate_size=144,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.05,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).float()


def train(config: WarmupConfig) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A model trained on demonstrations, in evaluation mode, and its tokenizer.

    On one machine with one set of library versions, equal settings give equal bytes.
    """
    tokenizer = build_tokenizer()
    model = build_model(config.seed, tokenizer)
    return _fit(model, _batches(config, tokenizer), config), tokenizer


def train_on_worksheets(
    config: WorksheetConfig, start: Path
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """The model in this folder, trained on demonstrations of worksheets, and its tokenizer; otherwise as `train`."""
    from transformers import LlamaForCausalLM

    tokenizer = build_tokenizer(WORKSHEET_LENGTH)
    model = LlamaForCausalLM.from_pretrained(start, dtype=torch.float32)
    model.config.max_position_embeddings = WORKSHEET_LENGTH
    return _fit(model, _worksheets(config, tokenizer), config), tokenizer


def _fit(
    model: LlamaForCausalLM, batches: Iterator[dict[str, Any]], config: WarmupConfig | WorksheetConfig
) -> LlamaForCausalLM:
    """The model in evaluation mode, after one step per batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, betas=(0.9, 0.95), weight_decay=0.0)
    model.train()
    with _one_thread():
        for step, batch in enumerate(batches):
            for group in optimizer.param_groups:
                group["lr"] = config.lr * _schedule(step, config.steps)
            loss = model(**batch, use_cache=False).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            if step % 50 == 0 or step == config.steps - 1:
                _log.info("step %d loss %.4f", step, loss.item())
    return model.eval()


def make_model(output: Path, config: WarmupConfig | WorksheetConfig) -> None:
    """Train a model, and save it with its tokenizer to a folder for `from_pretrained`."""
    if isinstance(config, WorksheetConfig):
        model, tokenizer = train_on_worksheets(config, model_path())
    else:
        model, tokenizer = train(config)
    model.save_pretrained(output)
    # A new tokenizer, because a used one saves its last padding settings too.
    build_tokenizer(tokenizer.model_max_length).save_pretrained(output)


def main() -> None:
    """Parse the command line and make the model."""
    parser = argparse.ArgumentParser(description="Make the embedded arithmetic model.")
    parser.add_argument("--output", type=Path, required=True, help="folder to write model and tokenizer to")
    parser.add_argument(
        "--worksheets", action="store_true", help="train the embedded model further, on worksheets"
    )
    parser.add_argument(
        "--steps",
        type=int,
        help=f"optimizer steps ({WarmupConfig.steps}; worksheets {WorksheetConfig.steps})",
    )
    parser.add_argument("--seed", type=int, default=WarmupConfig.seed, help="default %(default)s")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    kind = WorksheetConfig if options.worksheets else WarmupConfig
    try:
        config = kind(steps=kind.steps if options.steps is None else options.steps, seed=options.seed)
    except ValueError as error:
        parser.error(str(error))
    make_model(options.output, config)


def _worksheets(config: WorksheetConfig, tokenizer: PreTrainedTokenizerFast) -> Iterator[dict[str, Any]]:
    draw = random.Random(f"worksheets/{config.seed}")
    firsts = iter(worksheet.problems("train", config.steps * config.batch, config.seed))
    for _ in range(config.steps):
        count = draw.choice(config.counts)
        prompts = [str(next(firsts).prompt) for _ in range(max(1, config.batch // count))]
        texts = [(prompt, config.demonstrator.worksheet(prompt, count, draw)) for prompt in prompts]
        yield collate(texts, tokenizer)


def collate(texts: list[tuple[str, str]], tokenizer: PreTrainedTokenizerFast) -> dict[str, torch.Tensor]:
    """The token ids and labels of (prompt, completion) pairs, both [B, T].

    Prompts, padding, the tool's results and the chains that an environment deals out are left out of the loss. The
    model should not learn to imitate the interpreter.
    """
    both = tokenizer([p + c + EOS for p, c in texts], padding=True, padding_side="right", return_tensors="pt")
    ids_BT: torch.Tensor = both["input_ids"]
    starts_B = torch.tensor([len(ids) for ids in tokenizer([p for p, _ in texts])["input_ids"]])
    is_prompt_BT = torch.arange(ids_BT.shape[1]) < starts_B[:, None]
    ignored_BT = is_prompt_BT | environment_mask(ids_BT, tokenizer) | (both["attention_mask"] == 0)
    return {"input_ids": ids_BT, "labels": ids_BT.masked_fill(ignored_BT, IGNORED)}


def environment_mask(ids_BT: torch.Tensor, tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """A mask [B, T] that is true on results, tags included, and on a chain after an end of sequence up to its `=`."""
    ends = {
        tokenizer.convert_tokens_to_ids(first): tokenizer.convert_tokens_to_ids(last)
        for first, last in ((TOOL.result_open, TOOL.result_close), (EOS, "="))
    }
    results = tokenizer.convert_tokens_to_ids(TOOL.result_open)
    inside_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    for row, ids in enumerate(ids_BT.tolist()):
        until = None
        for place, token in enumerate(ids):
            inside_BT[row, place] = until is not None or token == results
            if until is None:
                until = ends.get(token)
            elif token == until:
                until = None
    return inside_BT


def _batches(config: WarmupConfig, tokenizer: PreTrainedTokenizerFast) -> Iterator[dict[str, Any]]:
    draw = random.Random(f"demonstrations/{config.seed}")
    chains = problems("train", config.steps * config.batch, config.seed)
    for start in range(0, len(chains), config.batch):
        prompts = [str(problem.prompt) for problem in chains[start : start + config.batch]]
        yield collate([(p, config.demonstrator.solve(p, draw)) for p in prompts], tokenizer)


def _schedule(step: int, steps: int) -> float:
    rise = max(1, steps // 10)
    return min((step + 1) / rise, (steps - step) / steps)


@contextmanager
def _one_thread() -> Iterator[None]:
    # Sums that are split over threads round differently with their number. One thread is also fastest at this size.
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
