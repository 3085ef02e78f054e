"""prime-rl: `[trainer.loss] type = "custom"`, `import_path = "ctpo.adapters.prime_rl.loss"`.

A call is one sequence, and its loss is the sum over the tokens; prime-rl divides by the batch's token count. It
keeps no old policy: the ratio's anchor is what the inference engine reported, so a product also accumulates the
mismatch between engine and trainer. `mismatch_k3` and `log_ratio_std` say how much.
"""

from __future__ import annotations

from typing import Any

from ctpo.adapters.guards import guards
from ctpo.adapters.shared import framework, objective_for


def loss(inputs: Any, preset: str = "ctpo", **knobs: Any) -> Any:
    """prime-rl's custom loss of one sequence.

    Args:
        inputs: prime-rl's `LossInputs`, tensors [T].
        preset, knobs: from `[trainer.loss] kwargs`.

    Returns:
        prime-rl's `LossOutputs`: Σ_t L_t and 0-d tensors.
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
    out = objective(logps, anchor, inputs.advantages[None], mask, weights=row)
    guards.look(out, logps, anchor, mask)
    metrics = {f"ctpo/{name}": value for name, value in out.stats.items()}
    return outputs.LossOutputs(loss=out.loss, metrics=metrics | {"mismatch_k3": out.stats["kl_k3"]})
