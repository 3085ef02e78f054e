"""The loss for prime-rl: `[trainer.loss] type = "custom"`, `import_path = "ctpo.adapters.prime_rl.loss"`.

One call gets one sequence, and returns the sum over its tokens. prime-rl divides by the batch's token count. It has no
old policy: the anchor of the ratio is what the inference engine reported. A product of ratios therefore also
accumulates the mismatch between engine and trainer; `mismatch_k3` and `log_ratio_std` measure it.
"""

from __future__ import annotations

from typing import Any

from ctpo.adapters.guards import guards
from ctpo.adapters.shared import framework, objective_for
from ctpo.objectives import turns_of


def loss(inputs: Any, preset: str = "ctpo", **knobs: Any) -> Any:
    """The loss of one sequence.

    Args:
        inputs: prime-rl's `LossInputs`, with tensors of shape [T].
        preset: its name, from `[trainer.loss] kwargs`.
        knobs: its settings, from there too.

    Returns:
        prime-rl's `LossOutputs`: Σ_t L_t, and statistics as 0-d tensors.
    """
    outputs = framework("prime_rl.trainer.rl.loss", "prime-rl from its repository")
    objective = objective_for(preset, knobs)
    weights = inputs.loss_weights
    logps, anchor, mask = (
        inputs.trainer_logprobs[None],
        inputs.inference_logprobs[None],
        inputs.loss_mask[None],
    )
    row = None if weights is None else weights[None]
    out = objective(logps, anchor, inputs.advantages[None], mask, weights=row, turn_ids=turns_of(mask))
    guards.look(out, logps, anchor, mask)
    metrics = {f"ctpo/{name}": value for name, value in out.stats.items()}
    return outputs.LossOutputs(loss=out.loss, metrics=metrics | {"mismatch_k3": out.stats["kl_k3"]})
