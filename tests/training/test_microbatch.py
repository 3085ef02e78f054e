"""What the forward pass leaves out changes neither loss, nor gradient, nor denominators inside the trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from ctpo import CTPOConfig, CTPOTrainer
from ctpo.objectives import preset
from ctpo.training.scoring.microbatch import MicroBatch
from ctpo.training.scoring.parts import Part, PartScorer

PLAIN: dict[str, Any] = {
    "pack_rows": False,
    "share_prompts": False,
    "completion_head": False,
    "fused_layers": False,
    "skip_zero_advantage": False,
    "max_tokens_per_micro_batch": 0,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "head": {"completion_head": True},
    "packed": {"completion_head": True, "pack_rows": True},
    "shared": {"completion_head": True, "pack_rows": True, "share_prompts": True},
    "fused": {"completion_head": True, "fused_layers": True},
    "skip": {"skip_zero_advantage": True},
    "skip and head": {"skip_zero_advantage": True, "completion_head": True},
    "bounded": {"completion_head": True, "max_tokens_per_micro_batch": 100},
    "bounded plain": {"max_tokens_per_micro_batch": 100},
    "all": {
        "completion_head": True,
        "pack_rows": True,
        "share_prompts": True,
        "fused_layers": True,
        "skip_zero_advantage": True,
        "max_tokens_per_micro_batch": 150,
    },
}


@pytest.fixture(scope="module")
def trained(fit: Callable[..., Any]) -> Any:
    """A trainer stopped in the middle of a rollout batch, where ratios are not 1 and some advantages are 0."""
    trainer = fit(CTPOTrainer, CTPOConfig, max_steps=3, anchor="rollout")
    trainer.model.train()
    return trainer


@pytest.fixture
def use(trained: Any) -> Iterator[Callable[..., Any]]:
    """A function that switches settings on in the trainer and all others off. Afterwards they are as before."""
    before = {name: getattr(trained.args, name) for name in PLAIN}

    def set_all(**settings: Any) -> Any:
        for name, value in {**PLAIN, **settings}.items():
            setattr(trained.args, name, value)
        trained.part_scorer = PartScorer(trained)
        return trained

    yield set_all
    set_all(**before)


def micro_batch(trainer: Any, **changes: Any) -> dict[str, Any]:
    """Eight rows, three of them without an advantage, with the denominators of a minibatch twice as large."""
    inputs = dict(trainer._buffered_inputs[3])
    advantages = torch.tensor([0.5, -1.0, 0.0, 1.0, 0.0, -0.7, 0.0, 2.0])
    mask = MicroBatch.of(inputs).response_mask
    totals = {"minibatch_num_tokens": 2 * mask.sum(), "minibatch_num_sequences": torch.tensor(16)}
    return {**inputs, "advantages": advantages, **totals, **changes}


def parts_of(trainer: Any, inputs: dict[str, Any]) -> list[Part]:
    return trainer.part_scorer.parts(trainer.model, MicroBatch.of(inputs))  # type: ignore[no-any-return]


def step(trainer: Any, inputs: dict[str, Any]) -> tuple[float, Tensor]:
    """Loss and gradient of one micro-batch, as the trainer computes them."""
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, inputs)
    trainer.accelerator.backward(loss)
    return float(loss.detach()), torch.cat([p.grad.flatten() for p in trainer.model.parameters()])


def test_trls_dictionary_becomes_named_tensors(trained: Any) -> None:
    inputs = trained._buffered_inputs[3]
    batch = MicroBatch.of(inputs)
    assert torch.equal(batch.response_mask, (inputs["completion_mask"] * inputs["tool_mask"]) == 1)
    assert batch.rollout_logps is inputs["sampling_per_token_logps"]
    assert batch.old_logps is None  # anchor="rollout" needs none
    assert batch.rewards is inputs["rewards"]
    assert int(batch.num_tokens) == int(batch.response_mask.sum())
    assert int(batch.num_sequences) == 8
    assert int(MicroBatch.of({**inputs, "minibatch_num_tokens": torch.tensor(99)}).num_tokens) == 99
    assert not batch.multimodal
    pixels = MicroBatch.of({**inputs, "pixel_values": torch.ones(8, 3), "image_sizes": None})
    assert list(pixels.multimodal) == ["pixel_values"]
    assert [part.pass_name for part in trained.part_scorer.parts(trained.model, pixels)] == ["plain"]


def test_some_responses_of_a_micro_batch(trained: Any) -> None:
    inputs = micro_batch(trained, rollout_weights=torch.linspace(0.5, 2, 8)[:, None])
    batch = MicroBatch.of(inputs)
    some = batch.take(torch.tensor([5, 0]))
    assert len(some) == 2
    assert torch.equal(some.completion_ids, inputs["completion_ids"][[5, 0]])
    assert some.rollout_logps is not None
    assert torch.equal(some.rollout_logps, inputs["sampling_per_token_logps"][[5, 0]])
    assert some.num_tokens is batch.num_tokens
    assert batch.has_advantage.tolist() == [True, True, False, True, False, True, False, True]
    expected = inputs["advantages"] * inputs["rollout_weights"][:, 0]
    assert torch.equal(batch.weighted(batch.advantages)[:, 0], expected)
    assert torch.equal(some.weighted(some.advantages)[:, 0], expected[[5, 0]])


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("reduction", ["token-mean", "seq-mean-token-mean"])
def test_no_setting_changes_loss_or_gradient(
    use: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, name: str, reduction: str
) -> None:
    trainer = use()
    monkeypatch.setattr(trainer, "objective", preset("ctpo", reduction=reduction))
    loss, gradient = step(trainer, micro_batch(trainer))
    assert gradient.norm() > 0
    actual_loss, actual = step(use(**SETTINGS[name]), micro_batch(trainer))
    assert actual_loss == pytest.approx(loss, rel=1e-5, abs=1e-8)
    assert (actual - gradient).norm() < 1e-5 * gradient.norm()


def test_rows_without_advantage_are_left_out_only_where_nothing_else_needs_them(
    use: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = use(**SETTINGS["all"])
    inputs = micro_batch(trainer)

    def scored() -> int:
        return sum(len(part.batch) for part in parts_of(trainer, inputs))

    assert scored() == 5
    monkeypatch.setattr(trainer, "beta", 0.1)
    assert scored() == 8
    monkeypatch.setattr(trainer, "beta", 0.0)
    monkeypatch.setattr(trainer, "objective", preset("prefix-quantile"))  # its limits rank all rows
    assert scored() == 8
    assert len(parts_of(trainer, inputs)) == 1


@pytest.mark.parametrize("name", ["kimi", "ipo", "gmpo", "ctpo"])
@pytest.mark.parametrize("settings", [{}, {"max_tokens_per_micro_batch": 100}])
def test_a_correction_weighs_the_whole_loss_of_a_token(
    use: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, name: str, settings: dict[str, Any]
) -> None:
    """A pull to the anchor too, and a token of weight 0 keeps the sign of its advantage in a mean of clipped ratios."""
    trainer = use(**settings)
    monkeypatch.setattr(trainer, "objective", preset(name))
    batch = MicroBatch.of(micro_batch(trainer))
    random = torch.Generator().manual_seed(0)
    weights = torch.rand(batch.completion_ids.shape, generator=random) * 2
    weights[torch.rand(weights.shape, generator=random) < 0.3] = 0.0
    rejected = torch.rand(weights.shape, generator=random) < 0.2
    anchor = batch.rollout_logps
    assert anchor is not None
    anchor = anchor - 0.3 * torch.rand(weights.shape, generator=random)
    inputs = micro_batch(
        trainer, rollout_weights=weights, rejection_mask=rejected, sampling_per_token_logps=anchor
    )
    actual, _ = step(trainer, inputs)
    logps = trainer._get_per_token_logps_and_entropies(
        trainer.model,
        torch.cat([batch.prompt_ids, batch.completion_ids], dim=1),
        torch.cat([batch.prompt_mask, batch.completion_mask], dim=1),
        batch.completion_ids.size(1),
    )[0]
    expected = trainer.objective(
        *(logps, anchor, batch.advantages, batch.response_mask),
        num_tokens=batch.num_tokens,
        num_sequences=batch.num_sequences,
        weights=weights,
        rejection_mask=rejected,
    )
    assert actual == pytest.approx(float(expected.loss.detach()), rel=1e-4)
    _, nothing = step(trainer, {**inputs, "rollout_weights": torch.zeros_like(weights)})
    assert nothing.abs().max() == 0


@pytest.mark.parametrize("name", ["bounded", "bounded plain"])
def test_a_part_has_no_more_tokens_than_the_limit_or_one_row(use: Callable[..., Any], name: str) -> None:
    trainer = use(**SETTINGS[name])
    inputs = micro_batch(trainer)
    cut = [part.batch for part in parts_of(trainer, inputs)]
    assert sum(map(len, cut)) == 8
    assert len(cut) > 1
    for part in cut:
        tokens = int(part.prompt_mask.sum() + part.completion_mask.sum())
        assert tokens <= 100 or len(part) == 1


@pytest.mark.parametrize("name", ["skip", "bounded", "bounded plain", "all"])
def test_denominators_are_those_given(use: Callable[..., Any], name: str) -> None:
    """Twice the tokens of this micro-batch halve its loss, whatever rows are left out."""
    trainer = use(**SETTINGS[name])
    inputs = micro_batch(trainer)
    alone = {key: value for key, value in inputs.items() if not key.startswith("minibatch_")}
    assert step(trainer, inputs)[0] == pytest.approx(step(trainer, alone)[0] / 2, rel=1e-5)


def test_nothing_to_learn_still_gives_gradients_of_zero(use: Callable[..., Any]) -> None:
    """Without any gradient the optimizer would skip the step, with its decay of moments and weights."""
    trainer = use(**SETTINGS["all"])
    inputs = micro_batch(trainer, advantages=torch.zeros(8))
    assert [len(part.batch) for part in parts_of(trainer, inputs)] == [1]
    loss, gradient = step(trainer, inputs)
    assert loss == 0.0
    assert torch.equal(gradient, torch.zeros_like(gradient))
    loss, gradient = step(trainer, {**inputs, "tool_mask": torch.zeros_like(inputs["tool_mask"])})
    assert loss == 0.0
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_statistics_are_those_of_one_call_over_the_rows_scored(use: Callable[..., Any]) -> None:
    trainer = use(**SETTINGS["all"])
    inputs = micro_batch(trainer)

    def statistics() -> dict[str, float]:
        trainer.objective_stats["train"].flush(trainer.accelerator)
        step(trainer, inputs)
        actual: dict[str, float] = trainer.objective_stats["train"].flush(trainer.accelerator)
        return actual

    cut = statistics()
    use(**{**SETTINGS["all"], "max_tokens_per_micro_batch": 0})
    whole = statistics()
    assert cut == pytest.approx(whole, rel=1e-4, abs=1e-6)
    assert cut["scored_rows"] == 5 / 8
    use()
    every = statistics()
    for name in ("tokens", "sequences", "minibatch_loss"):
        assert cut[name] == pytest.approx(every[name], rel=1e-5)
    assert cut["entropy"] != pytest.approx(every["entropy"], rel=1e-3)  # of the rows scored


def test_evaluation_goes_no_backward(use: Callable[..., Any]) -> None:
    trainer = use(**SETTINGS["all"])
    inputs = micro_batch(trainer)
    trainer.model.zero_grad()
    trainer.model.eval()
    try:
        with torch.no_grad():
            loss = trainer._compute_loss(trainer.model, inputs)
    finally:
        trainer.model.train()
    assert all(p.grad is None for p in trainer.model.parameters())
    assert float(loss) == pytest.approx(step(trainer, inputs)[0], rel=1e-5)


def test_old_log_probs_come_the_same_way(use: Callable[..., Any]) -> None:
    """TRL asks for them itself, and likewise for the log-probs of the reference model."""
    trainer = use()
    inputs = trainer._buffered_inputs[3]
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    trainer.beta = 0.1  # else anchor="rollout" needs none
    try:
        with torch.no_grad():
            ask = trainer._get_per_token_logps_and_entropies
            plain, _, _ = ask(trainer.model, ids, mask, inputs["completion_ids"].shape[1], batch_size=4)
            use(**SETTINGS["all"])
            fast, _, _ = ask(trainer.model, ids, mask, inputs["completion_ids"].shape[1], batch_size=4)
    finally:
        trainer.beta = 0.0
    response = inputs["completion_mask"].bool()
    assert not torch.equal(plain[response], fast[response])  # another pass did compute them
    torch.testing.assert_close(fast[response], plain[response], atol=2e-5, rtol=1e-5)


def test_groups_stay_together_unless_settings_say_otherwise(fit: Callable[..., Any]) -> None:
    """Two minibatches of 8 rows hold 4 responses to each of 4 prompts: two whole groups each, or two responses to each
    prompt."""
    settings = {"generation_batch_size": 16, "max_steps": 1}
    for whole, sizes in ((True, [4, 4]), (False, [2, 2, 2, 2])):
        trainer = fit(CTPOTrainer, CTPOConfig, whole_groups=whole, **settings)
        for part in trainer._buffered_inputs:
            groups = MicroBatch.of(part).rows.groups()
            assert sorted(groups.bincount().tolist()) == sizes


def test_denominators_take_one_collective_per_rollout_batch(
    trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    reduce = trained.accelerator.reduce
    monkeypatch.setattr(trained.accelerator, "reduce", lambda *a, **k: calls.append(1) or reduce(*a, **k))
    monkeypatch.setattr(trained.denominators, "_counted", None)
    monkeypatch.setattr(trained, "current_gradient_accumulation_steps", 2, raising=False)
    for at in range(4):
        totals = trained.denominators.of(trained._buffered_inputs, at)
        pair = trained._buffered_inputs[at // 2 * 2 : at // 2 * 2 + 2]
        assert totals["minibatch_num_tokens"] == sum(
            int(MicroBatch.of(part).response_mask.sum()) for part in pair
        )
        assert totals["minibatch_num_sequences"] == 16
    assert len(calls) == 1


def test_training_with_all_settings_on_ends_where_plain_training_does(fit: Callable[..., Any]) -> None:
    """Eight updates. Adam enlarges rounding where a gradient is nearly 0, so the bound is wider than rounding.

    A setting that changed the mathematics would move parameters by 1e-3.
    """

    def parameters(**settings: Any) -> Tensor:
        trainer = fit(CTPOTrainer, CTPOConfig, **settings)
        return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])

    plain = parameters(**PLAIN)
    fast = parameters(**{**SETTINGS["all"], "max_tokens_per_micro_batch": 200})
    assert (fast - plain).norm() < 1e-4 * plain.norm()
    torch.testing.assert_close(fast, plain, atol=5e-4, rtol=0)
