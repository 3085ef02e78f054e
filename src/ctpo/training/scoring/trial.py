"""Does a pass give what single rows give? Tried on a few tokens of the model itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ctpo.training.scoring.rows import Rows
from ctpo.training.scoring.scorer import evaluating

if TYPE_CHECKING:
    from ctpo.training.scoring.scorer import Scorer

_SHARE = 0.05
"""Of what another prompt changes: rounding is below (in bfloat16 .01), attention to wrong tokens far above."""
_PROMPTS, _REACH, _PARENT = (5, 3), (4, 6, 3, 5), (0, 0, 1, 0)


def disagreement(scorer: Scorer, model: Any, unwrapped: Any, way: str) -> str | None:
    """Why the pass cannot be used on this model, or None."""
    if type(unwrapped.get_output_embeddings()) is not nn.Linear:
        return "its head is not a plain linear layer"
    rows = _rows(unwrapped)
    try:
        with evaluating(unwrapped):
            found = scorer.score(model, unwrapped, rows, way)[0]
            with scorer.autocast():
                alone = one_by_one(model, rows, scorer.temperature)
                other = one_by_one(model, _other_prompts(rows), scorer.temperature)
    except Exception as error:  # whatever a model does with inputs it was not made for
        return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    difference, context = (found - alone).abs().max(), (other - alone).abs().max()
    if not difference <= _SHARE * context:
        return f"log-probs differ by {difference:.2g} nats"
    return None


def _rows(model: Any) -> Rows:
    """Two prompts with three completions and one, of different lengths."""
    device = model.get_input_embeddings().weight.device
    vocabulary = model.get_input_embeddings().num_embeddings
    draw = torch.Generator().manual_seed(0)
    prompt_rows = torch.randint(vocabulary, (len(_PROMPTS), max(_PROMPTS)), generator=draw)
    completions = torch.randint(vocabulary, (len(_REACH), max(_REACH)), generator=draw)
    place = torch.arange(max(_PROMPTS))
    lengths = torch.tensor([_PROMPTS[parent] for parent in _PARENT])
    prompt_mask = (place[None] >= max(_PROMPTS) - lengths[:, None]).long()
    completion_mask = (torch.arange(max(_REACH))[None] < torch.tensor(_REACH)[:, None]).long()
    fields = (prompt_rows[list(_PARENT)], prompt_mask, completions, completion_mask, completion_mask.bool())
    return Rows(*(each.to(device) for each in fields))


def _other_prompts(rows: Rows) -> Rows:
    vocabulary = int(max(rows.prompt_ids.max(), rows.completion_ids.max())) + 1
    return Rows(**{**vars(rows), "prompt_ids": (rows.prompt_ids + vocabulary // 2) % vocabulary})


def one_by_one(model: Any, rows: Rows, temperature: float) -> Tensor:
    """[B, T] log-probs in float32 or wider, each row alone and without padding, through the model's own logits."""
    scores = []
    for i in range(len(rows)):
        prompt = rows.prompt_ids[i][rows.prompt_mask[i].bool()]
        completion = rows.completion_ids[i][rows.completion_mask[i].bool()]
        logits = model(input_ids=torch.cat([prompt, completion])[None], use_cache=False).logits
        wide = torch.promote_types(logits.dtype, torch.float32)
        logps = (logits[0, len(prompt) - 1 : -1].to(wide) / temperature).log_softmax(-1)
        pad = rows.completion_ids.shape[1] - len(completion)
        scores.append(torch.nn.functional.pad(logps.gather(1, completion[:, None])[:, 0], (0, pad)))
    return torch.stack(scores)
