"""Which forward pass a model allows: tried once per model, on a few tokens, against one row at a time."""

from __future__ import annotations

import warnings
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ctpo.training.scoring.rows import Rows
from ctpo.training.scoring.scorer import Scorer, evaluating, recomputes_layers

PASSES: Final = ("packed", "padded", "plain")
"""From the fastest to the one that every model allows. `Scorer` runs the first two, `plain` is TRL's own pass."""

_TOLERANCE = 0.05
"""The largest difference of a log-prob, as a share of what another prompt changes. Rounding lies below (.01 in
bfloat16), attention to wrong tokens far above."""
_PROMPT_LENGTHS, _COMPLETION_LENGTHS, _PROMPT_OF_ROW = (5, 3), (4, 6, 3, 5), (0, 0, 1, 0)


class SlowPassNote(UserWarning):
    """The model does not allow the forward pass that the settings ask for, so a slower one runs."""


class PassChoice:
    """Chooses the forward pass of each model that one scorer is used with."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._allowed: WeakKeyDictionary[nn.Module, str] = WeakKeyDictionary()

    def best(self, model: nn.Module, unwrapped: nn.Module) -> str:
        """The fastest pass that both the options and the model allow, one of `PASSES`.

        Args:
            model: as it is wrapped for training.
            unwrapped: the transformers model inside.

        Warns:
            SlowPassNote: once per model, if it does not allow the pass that the options ask for.
        """
        options = self._scorer.options
        if not options.completion_head:
            return "plain"
        wanted = "packed" if options.pack_rows and not recomputes_layers(unwrapped) else "padded"
        allowed = self._allowed.get(unwrapped)
        if allowed is None:
            allowed = self._allowed[unwrapped] = self._try(model, unwrapped, wanted)
        return max(wanted, allowed, key=PASSES.index)

    def _try(self, model: Any, unwrapped: Any, wanted: str) -> str:
        """The first pass from `wanted` on whose log-probs agree with those of single rows."""
        reason = ""
        for name in PASSES[PASSES.index(wanted) : -1]:
            problem = disagreement(self._scorer, model, unwrapped, name)
            if problem is None:
                break
            reason = reason or f"{name}: {problem}"
        else:
            name = "plain"
        if name != wanted:
            warnings.warn(
                f"{type(unwrapped).__name__} is scored by the {name} pass, not the {wanted} one ({reason}); "
                "training steps are slower for it",
                SlowPassNote,
                stacklevel=2,
            )
        return name


def disagreement(scorer: Scorer, model: Any, unwrapped: Any, pass_name: str) -> str | None:
    """Why a pass gives wrong log-probs for this model, or None if it gives the right ones.

    Args:
        scorer: runs the pass.
        model: as it is wrapped for training.
        unwrapped: the transformers model inside.
        pass_name: "packed" or "padded".
    """
    if type(unwrapped.get_output_embeddings()) is not nn.Linear:
        return "its head is not a plain linear layer"
    rows = _trial_rows(unwrapped)
    try:
        with evaluating(unwrapped):
            logps = scorer.score(model, unwrapped, rows, pass_name)[0]
            with scorer.autocast():
                expected = one_by_one(model, rows, scorer.temperature)
                other = one_by_one(model, _with_other_prompts(rows), scorer.temperature)
    except Exception as error:  # a model may raise anything when its inputs are not the usual ones
        return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    difference, effect_of_prompt = (logps - expected).abs().max(), (other - expected).abs().max()
    if not difference <= _TOLERANCE * effect_of_prompt:
        return f"log-probs differ by {difference:.2g} nats"
    return None


def _trial_rows(model: Any) -> Rows:
    """Random tokens: one prompt with three completions and one with a single completion, all of different lengths."""
    device = model.get_input_embeddings().weight.device
    vocabulary = model.get_input_embeddings().num_embeddings
    draw = torch.Generator().manual_seed(0)
    prompts = torch.randint(vocabulary, (len(_PROMPT_LENGTHS), max(_PROMPT_LENGTHS)), generator=draw)
    completions = torch.randint(
        vocabulary, (len(_COMPLETION_LENGTHS), max(_COMPLETION_LENGTHS)), generator=draw
    )
    place = torch.arange(max(_PROMPT_LENGTHS))
    lengths = torch.tensor([_PROMPT_LENGTHS[prompt] for prompt in _PROMPT_OF_ROW])
    prompt_mask = (place[None] >= max(_PROMPT_LENGTHS) - lengths[:, None]).long()
    place = torch.arange(max(_COMPLETION_LENGTHS))
    completion_mask = (place[None] < torch.tensor(_COMPLETION_LENGTHS)[:, None]).long()
    tensors = (
        prompts[list(_PROMPT_OF_ROW)],
        prompt_mask,
        completions,
        completion_mask,
        completion_mask.bool(),
    )
    return Rows(*(each.to(device) for each in tensors))


def _with_other_prompts(rows: Rows) -> Rows:
    vocabulary = int(max(rows.prompt_ids.max(), rows.completion_ids.max())) + 1
    return Rows(**{**vars(rows), "prompt_ids": (rows.prompt_ids + vocabulary // 2) % vocabulary})


def one_by_one(model: Any, rows: Rows, temperature: float) -> Tensor:
    """[B, T] log-probs in float32 or wider, from the model's logits for each row alone and without padding."""
    scores = []
    for i in range(len(rows)):
        prompt = rows.prompt_ids[i][rows.prompt_mask[i].bool()]
        completion = rows.completion_ids[i][rows.completion_mask[i].bool()]
        logits = model(input_ids=torch.cat([prompt, completion])[None], use_cache=False).logits
        wide = torch.promote_types(logits.dtype, torch.float32)
        logps = (logits[0, len(prompt) - 1 : -1].to(wide) / temperature).log_softmax(-1)
        padding = rows.completion_ids.shape[1] - len(completion)
        scores.append(torch.nn.functional.pad(logps.gather(1, completion[:, None])[:, 0], (0, padding)))
    return torch.stack(scores)
