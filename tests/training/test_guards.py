"""Updates that are not finite are skipped and counted. Several in a row end the run. Weights never become NaN."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ctpo import CTPOConfig, CTPOTrainer
from ctpo.errors import UserError
from ctpo.training.step.guards import NonFiniteUpdates, UpdateGuard


class Poisoned(CTPOTrainer):
    """Puts one NaN or infinity into the place `where`, at the updates `when`."""

    where = ""
    when: tuple[int, ...] = ()
    seen: list[dict[str, torch.Tensor]] = []  # noqa: RUF012  (a test sets it)

    @property
    def due(self) -> bool:
        return self.state.global_step in self.when

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)
        if self.where == "gradient" and self.due:
            next(self.model.parameters()).grad[0, 0] = float("nan")
        if self.where == "weight" and self.due:
            next(self.model.parameters()).data[0, 0] = float("inf")
        return loss

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        if self.where == "log-probs" and self.due:
            hook = model.model.norm.register_forward_hook(lambda *args: args[-1] * float("nan"))
            try:
                return super()._compute_loss(model, inputs)
            finally:
                hook.remove()
        return super()._compute_loss(model, inputs)

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        self.seen.append({name: value.detach().clone() for name, value in self.model.named_parameters()})
        return norm


def poisoned(where: str, *when: int) -> type[Poisoned]:
    return type("Poisoned", (Poisoned,), {"where": where, "when": when, "seen": []})


def finite(model: torch.nn.Module) -> bool:
    return all(bool(parameter.isfinite().all()) for parameter in model.parameters())


@pytest.mark.parametrize("where", ["gradient", "log-probs"])
def test_a_bad_update_is_skipped_and_counted(fit: Callable[..., Any], where: str) -> None:
    trainer_class = poisoned(where, 1)
    trainer = fit(trainer_class, CTPOConfig, max_steps=4)
    assert finite(trainer.model)
    assert trainer.guard.total == 1
    logged = [row.get("objective/skipped_updates", 0) for row in trainer.state.log_history]
    assert sum(logged) == 1
    before, after = trainer_class.seen[1], trainer_class.seen[2]  # before each update is taken
    assert all(torch.equal(before[name], after[name]) for name in before)
    steps = {int(state["step"]) for state in trainer.optimizer.state.values()}
    assert steps == {3}  # the optimizer has not counted it
    assert trainer.lr_scheduler.last_epoch == 4  # the schedule has


def test_in_a_row_they_end_the_run_with_a_diagnosis(fit: Callable[..., Any]) -> None:
    with pytest.raises(NonFiniteUpdates) as stop:
        fit(poisoned("gradient", *range(9)), CTPOConfig, max_nonfinite_updates=2)
    message = str(stop.value)
    assert "\n" not in message
    assert "2 updates in a row were skipped (max_nonfinite_updates=2)" in message
    assert "the loss is finite and its gradient is not: lower learning_rate" in message
    with pytest.raises(UserError, match="gives no finite log-probs though its weights are finite"):
        fit(poisoned("log-probs", 0), CTPOConfig, max_nonfinite_updates=1)


def test_broken_weights_are_named_and_not_saved(fit: Callable[..., Any]) -> None:
    with pytest.raises(NonFiniteUpdates, match=r"weights are no longer finite .model.embed_tokens.weight."):
        fit(poisoned("weight", 1), CTPOConfig)
    with pytest.raises(NonFiniteUpdates, match=r"after update 2 .*so no checkpoint was saved"):
        fit(poisoned("weight", 1), CTPOConfig, save_strategy="steps", save_steps=2)


def test_a_finite_update_begins_the_count_again() -> None:
    class Alone:
        num_processes, device = 1, torch.device("cpu")

        def reduce(self, value: torch.Tensor, reduction: str) -> torch.Tensor:
            return value

    guard, model = UpdateGuard(limit=2), torch.nn.Linear(1, 1)
    assert [guard.judge(model, norm, Alone()) for norm in (1.0, float("inf"), 2.0, float("nan"))] == [
        True,
        False,
        True,
        False,
    ]
    assert guard.flush() == 2
    with pytest.raises(NonFiniteUpdates, match=r"the last finite gradient norm was 2"):
        guard.judge(model, float("nan"), Alone())


def test_the_limit_is_at_least_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_nonfinite_updates=0 is too small; use at least 1"):
        CTPOConfig(str(tmp_path), use_cpu=True, max_nonfinite_updates=0)
