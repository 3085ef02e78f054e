"""The critic: its estimates by formulas of others and by enumeration, its values, and runs that train with one."""

from __future__ import annotations

import copy
import itertools
import json
import math
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ctpo import CTPOConfig, CTPOTrainer
from ctpo.errors import UserError
from ctpo.objectives.advantages import gae, v_trace
from ctpo.tasks.rewards import SegmentReward
from ctpo.training.config.critic import critic_knobs
from ctpo.training.credit.credit import Credit
from ctpo.training.credit.turns import rewards_by_token
from ctpo.training.critic.estimates import estimates, normalised, policy_trace
from ctpo.training.critic.figures import ValueSums
from ctpo.training.critic.learner import Critic, Responses
from ctpo.training.critic.least_squares import LeastSquares
from ctpo.training.critic.loss import value_loss
from ctpo.training.critic.model import policy_states
from ctpo.training.critic.surprise import surprise
from ctpo.training.sampling.checked import CheckedRewards
from ctpo.training.scoring.parts import PartScorer
from ctpo.training.scoring.rows import Rows
from ctpo.training.step.warnings import NoCriticWarning, warn_without_critic

DRAW = torch.Generator().manual_seed(0)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=DRAW, dtype=torch.float64)


def as_verl(
    rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: Tensor
) -> tuple[Tensor, Tensor]:
    """Advantages and returns by the loop of verl's `compute_gae_advantage_return`; TRL's PPOTrainer had the same."""
    following, last, columns = torch.zeros(()), torch.zeros(()), []
    for t in reversed(range(rewards.shape[1])):
        here = mask[:, t].double()
        delta = rewards[:, t] + gamma * following - values[:, t]
        advantage = delta + gamma * lam * last
        following = values[:, t] * here + (1 - here) * following
        last = advantage * here + (1 - here) * last
        columns.append(last)
    advantages = torch.stack(columns[::-1], dim=1)
    return advantages, advantages + values


@pytest.mark.parametrize("trace_length", [None, 0.5])
def test_estimates_are_those_of_verl_and_of_trl(trace_length: float | None) -> None:
    """Tool tokens and padding are skipped without breaking the chain; λ and γ are the policy's and the critic's."""
    rewards, values = random(5, 11), random(5, 11)
    mask = torch.rand(5, 11, generator=DRAW) < 0.6
    mask[4] = False
    given = {"discount": 0.9, "value_discount": 0.95, "value_trace": 0.7, "trace_length": trace_length}
    knobs = critic_knobs(given if trace_length else {**given, "trace": 0.8})
    lam = torch.full((5,), 0.8, dtype=torch.float64)
    if trace_length:
        lam = (1 - 1 / (trace_length * mask.sum(1).clamp(min=1).double())).clamp(min=0)
        assert lam.unique().numel() > 2
    kept = torch.where(mask, rewards, 0.0)
    got = estimates(rewards, torch.where(mask, values, torch.nan), mask, knobs)
    advantages, _ = as_verl(kept, values, mask, 0.9, lam)
    _, returns = as_verl(kept, values, mask, 0.95, torch.full((5,), 0.7, dtype=torch.float64))
    torch.testing.assert_close(got.advantages[mask], advantages[mask], atol=1e-12, rtol=0)
    torch.testing.assert_close(got.targets[mask], returns[mask], atol=1e-12, rtol=0)
    assert not got.advantages[~mask].any()
    assert not got.targets[~mask].any()


def test_the_value_loss_is_that_of_verl_and_of_trl() -> None:
    values, old, returns = (random(4, 6) for _ in range(3))
    mask = torch.rand(4, 6, generator=DRAW) < 0.7
    clipped = torch.clamp(values, old - 0.2, old + 0.2)
    error = torch.max((values - returns) ** 2, (clipped - returns) ** 2)
    expected = 0.5 * error[mask].mean()
    got = value_loss(values, returns, mask, old_values=old, clip=0.2) / mask.sum()
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)
    plain = value_loss(values, returns, mask, old_values=old) / mask.sum()
    torch.testing.assert_close(plain, 0.5 * ((values - returns) ** 2)[mask].mean(), atol=1e-12, rtol=0)


def test_whitening_is_that_of_verl() -> None:
    advantages = random(4, 6)
    mask = torch.rand(4, 6, generator=DRAW) < 0.7
    alone = SimpleNamespace(reduce=lambda tensor, reduction: tensor)
    got = normalised(advantages, mask, "whiten", alone)
    own = advantages[mask]
    torch.testing.assert_close(got[mask], (own - own.mean()) / own.var().sqrt(), atol=1e-12, rtol=0)
    scaled = normalised(advantages, mask, "scale", alone)
    torch.testing.assert_close(scaled[mask], own / own.std(), atol=1e-12, rtol=0)
    assert not got[~mask].any()
    assert normalised(advantages, mask, "none", alone) is advantages


class Enumerated:
    """Every response of 3 tokens of 2, under two policies without shared parameters, with random rewards."""

    def __init__(self) -> None:
        self.responses = torch.tensor(list(itertools.product((0, 1), repeat=3)))
        self.rewards = random(8)
        self.b, self.logits = random(7, 2).log_softmax(1), random(7, 2).requires_grad_()
        self.state = torch.tensor([[0, 1 + o[0], 3 + 2 * o[0] + o[1]] for o in self.responses.tolist()])
        self.mask = torch.ones(8, 3, dtype=torch.bool)

    def logps(self, table: Tensor) -> Tensor:
        return table.log_softmax(1)[self.state, self.responses]

    def values(self, logps: Tensor) -> Tensor:
        """[7] the expected reward after each prefix."""
        after = torch.zeros(7, dtype=torch.float64)
        for state in range(7):
            here = self.state == state
            place = int(here.any(0).nonzero()[0, 0])
            rows = here[:, place]
            rest = logps[rows, place:].sum(1).exp()
            after[state] = (rest * self.rewards[rows]).sum()
        return after

    @property
    def gradient(self) -> Tensor:
        """∇J of the policy that learns."""
        expected = (self.logps(self.logits).sum(1).exp() * self.rewards).sum()
        return torch.autograd.grad(expected, self.logits)[0]

    def estimate(self, advantages: Tensor) -> Tensor:
        """The expectation under b of Σ_t ρ_t A_t ∇log π_t."""
        logps, own = self.logps(self.logits), self.logps(self.b)
        prefix = (logps - own).detach().cumsum(1).exp()
        loss = (own.sum(1).exp()[:, None] * prefix * advantages * logps).sum()
        return torch.autograd.grad(loss, self.logits)[0]


@pytest.mark.parametrize("trace", [0.0, 0.6, 1.0])
def test_the_corrected_advantage_makes_the_prefix_ratio_exact(trace: float) -> None:
    """With V^π for every λ, and with λ = 1 for any values. Without the correction it is not."""
    world = Enumerated()
    ratios = (world.logps(world.logits) - world.logps(world.b)).detach()
    right = world.values(world.logps(world.logits).detach())[world.state]
    free: dict[str, Any] = {"trace": trace, "rho_bar": torch.inf, "c_bar": torch.inf}
    true = world.gradient
    advantages, _ = v_trace(world.rewards, right, world.mask, ratios, **free)
    torch.testing.assert_close(world.estimate(advantages), true, atol=1e-12, rtol=0)
    advantages, _ = v_trace(world.rewards, random(7)[world.state], world.mask, ratios, **free)
    assert torch.allclose(world.estimate(advantages), true, atol=1e-12) == (trace == 1.0)
    advantages = gae(world.rewards, right, world.mask, trace=trace)
    assert torch.allclose(world.estimate(advantages), true, atol=1e-12) == (trace == 0.0)


def test_a_tabular_critic_converges_to_the_values_of_the_policy() -> None:
    """Of π with the correction, and of b without it, whatever λ of the critic."""
    world = Enumerated()
    learning, sampling = world.logps(world.logits).detach(), world.logps(world.b)
    weight = sampling.sum(1).exp()[:, None].expand(8, 3)
    knobs = critic_knobs(
        {"value_trace": 0.6, "correction": "v-trace", "rho_bar": torch.inf, "c_bar": torch.inf}
    )
    for ratios, wanted in ((learning - sampling, learning), (None, sampling)):
        table = torch.zeros(7, dtype=torch.float64)
        rewards = torch.zeros(8, 3, dtype=torch.float64)
        rewards[:, 2] = world.rewards
        for _ in range(8):
            targets = estimates(rewards, table[world.state], world.mask, knobs, ratios).targets
            flat = world.state.reshape(-1)
            table = torch.zeros(7, dtype=torch.float64).index_add(0, flat, (weight * targets).reshape(-1))
            table /= torch.zeros(7, dtype=torch.float64).index_add(0, flat, weight.reshape(-1))
        torch.testing.assert_close(table, world.values(wanted), atol=1e-12, rtol=0)


def test_bars_are_those_of_v_trace() -> None:
    """By the recursion of the paper, with λ = 1."""
    rewards, values, ratios = random(3, 7), random(3, 7), random(3, 7)
    mask = torch.ones(3, 7, dtype=torch.bool)
    advantages, targets = v_trace(rewards, values, mask, ratios, discount=0.9, rho_bar=1.5, c_bar=0.8)
    following, later = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    for t in reversed(range(7)):
        rho, c = ratios[:, t].exp().clamp(max=1.5), ratios[:, t].exp().clamp(max=0.8)
        torch.testing.assert_close(advantages[:, t], rewards[:, t] + 0.9 * later - values[:, t])
        delta = rho * (rewards[:, t] + 0.9 * following - values[:, t])
        later = values[:, t] + delta + 0.9 * c * (later - following)
        torch.testing.assert_close(targets[:, t], later)
        following = values[:, t]
    with pytest.raises(ValueError, match=r"c_bar: 0 must be more than 0"):
        v_trace(rewards, values, mask, ratios, c_bar=0)


def test_rewards_of_turns_and_the_rest() -> None:
    mask = torch.tensor([[1, 1, 0, 0, 1, 1], [1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [0] * 6]).bool()
    totals = torch.tensor([3.0, 1.0, float("nan"), 2.0])
    pairs = [[(3, 0.5), (5, 1.0)], [], [(1, 1.0)], []]
    got = rewards_by_token(pairs, totals, mask)
    assert got[0].tolist() == [
        0,
        0.5,
        0,
        0,
        0,
        2.5,
    ]  # given after the tool's tokens, earned by the one before
    assert got[1].tolist() == [1, 0, 0, 0, 0, 0]
    assert got[2].isnan().all()
    assert not got[3].any()
    assert rewards_by_token(None, totals, mask)[0].tolist() == [0, 0, 0, 0, 0, 3]


def test_rewards_of_parts_come_at_their_tokens(embedded: Any) -> None:
    """What one function gave to parts, what another gave to the whole, and a token that a tool wrote."""
    model, tokenizer = embedded
    view = critic_of(model, alone())._trainer
    view.reward_weights, view.processing_class = torch.tensor([1.0, 2.0]), tokenizer  # type: ignore[attr-defined]
    credit = Credit(view, PartScorer(view), lambda rollouts: torch.zeros(1, 8))  # type: ignore[arg-type]
    ids = tokenizer("12+3=15;", return_tensors="pt").input_ids
    assert ids.shape == (1, 8)

    def parts(prompts: Any, completions: Any, **_: Any) -> list[float]:
        return [SegmentReward([(3, 0.25), (5, 0.5)])]

    def whole(prompts: Any, completions: Any, **_: Any) -> list[float]:
        return [1.5]

    checked = CheckedRewards([parts, whole], ["parts", "whole"])
    given = [[each(prompts=["1"], completions=["1"])[0] for each in checked.functions]]  # type: ignore[operator]
    inputs, mask = [{"prompt": "1"}], torch.tensor([[1, 1, 1, 1, 0, 1, 1, 1]])
    credit.take_rewards(torch.tensor(given), checked, inputs, ids.tolist())
    rollouts = {
        "prompt_ids": ids[:, :1], "prompt_mask": mask[:, :1], "completion_ids": ids, "completion_mask": mask,
        "advantages": torch.zeros(1),
    }  # fmt: skip
    model.train()
    credit.give(inputs, rollouts)
    model.eval()
    assert rollouts["token_rewards"].tolist() == [[0, 0, 0.25, 0.5, 0, 0, 0, 3.0]]


def test_explained_variance_by_position() -> None:
    sums = ValueSums([1, 2, 4])
    returns = random(20, 4)
    mask = torch.ones(20, 4, dtype=torch.bool)
    mask[:, 1] = False  # a tool's token: the third is the model's second
    values = returns.clone()
    values[:, 2] += 0.5 * random(20)
    sums.add(values, returns, returns, mask)
    figures, curves = sums.close(SimpleNamespace(reduce=lambda tensor, reduction: tensor, device="cpu"))
    error = (returns - values)[:, 2]
    second = 1 - (error**2).mean() / returns[:, 2].var(correction=0)
    assert curves["critic_explained_variance"] == pytest.approx([1.0, float(second), 1.0])
    assert figures["critic_value_loss"] == pytest.approx(float((error**2).mean() / 6))


class InThreads:
    """What a critic needs of accelerate, for several critics in threads that add up what they hand over."""

    def __init__(self, processes: int, index: int, shared: dict[str, Any]) -> None:
        self.num_processes, self.process_index, self.is_main_process = processes, index, index == 0
        self.device, self.distributed_type, self._shared = torch.device("cpu"), "NO", shared

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        slots, barrier = self._shared["slots"], self._shared["barrier"]
        slots[self.process_index] = tensor
        barrier.wait()
        total = torch.stack(list(slots)).sum(0)
        barrier.wait()
        return total

    def unwrap_model(self, model: Any) -> Any:
        return model


def critic_of(policy: Any, accelerator: Any, **knobs: Any) -> Critic:
    args = CTPOConfig(
        "unused", use_cpu=True, report_to="none", advantages="gae", critic=knobs, per_device_train_batch_size=4,
        steps_per_generation=2, num_generations=4, compute_dtype="float32", max_completion_length=8,
    )  # fmt: skip
    view: Any = SimpleNamespace(
        args=args, accelerator=accelerator, model=policy, temperature=1.0, is_fsdp_enabled=False,
        is_deepspeed_enabled=False, objective=args.build_objective(),
    )  # fmt: skip
    return Critic(view, PartScorer(view))


def parameters(critic: Critic) -> list[Tensor]:
    return [] if critic.model is None else list(critic.model.parameters())


def alone() -> InThreads:
    return InThreads(1, 0, {"slots": [None], "barrier": threading.Barrier(1)})


@pytest.fixture(scope="module")
def rollouts() -> Responses:
    """16 responses of up to 8 tokens to 4 prompts, some with a tool's tokens, and their rewards."""
    draw = torch.Generator().manual_seed(1)
    prompts = torch.randint(2, 20, (4, 5), generator=draw).repeat_interleave(4, dim=0)
    prompt_mask = torch.ones_like(prompts)
    prompt_mask[4:8, :2] = 0
    lengths = torch.randint(2, 9, (16, 1), generator=draw)
    completion_mask = (torch.arange(8)[None] < lengths).long()
    wanted = completion_mask.bool()
    wanted[::3, 1] = False
    wanted[5] = False  # nobody has judged it
    completions = torch.randint(2, 20, (16, 8), generator=draw)
    rewards = torch.zeros(16, 8, dtype=torch.float64)
    rewards[torch.arange(16), 0] = (completions[:, 0] > 9).double()
    logps = -torch.rand(16, 8, generator=draw) * 3
    return Responses(
        rows=Rows(prompts, prompt_mask, completions, completion_mask, wanted), rewards=rewards, logps=logps
    )


def part_of(given: Responses, index: Tensor) -> Responses:
    return replace(given, rows=given.rows.take(index), rewards=given.rewards[index], logps=given.logps[index])


@pytest.mark.parametrize("knobs", [{"layers": 2}, {"trunk": "copy"}])
def test_values_do_not_depend_on_the_layout(
    embedded: Any, rollouts: Responses, knobs: dict[str, Any]
) -> None:
    """Packed with shared prompts, padded, and each row alone and whole in the model itself."""
    model = copy.deepcopy(embedded[0]).float()
    critic, rows = critic_of(model, alone(), **knobs).model, rollouts.rows
    assert critic is not None
    assert critic.pass_name == "packed"
    torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(0))
    some = rows.take(rows.wanted.any(1).nonzero()[:, 0])
    with torch.no_grad():
        packed = critic.values(some)
        critic._pass_name = "padded"
        padded = critic.values(some)
        for row in (0, 3, 6):
            prompt = some.prompt_ids[row][some.prompt_mask[row].bool()]
            ids = torch.cat([prompt, some.completion_ids[row]])[None]
            states = critic.trunk(input_ids=ids).last_hidden_state[0, len(prompt) - 1 : -1]
            expected = torch.where(some.wanted[row], critic.head(states)[:, 0], 0.0)
            torch.testing.assert_close(packed[row], expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(packed, padded, atol=1e-4, rtol=1e-4)
    assert packed.abs().max() > 0.1
    assert len(critic.trunk.layers) == knobs.get("layers", model.config.num_hidden_layers // 2)


def test_surprise_reads_only_what_came_before() -> None:
    logps = torch.tensor([[-1.0, -9.0, -0.5, -2.0, -0.1], [-torch.inf, -1.0, torch.nan, 0.0, 0.0]]).double()
    mask = torch.tensor([[1, 0, 1, 1, 1], [1, 1, 1, 1, 0]]).bool()
    got = surprise(logps, mask)
    for row in range(2):
        before: list[float] = []
        for t in range(5):
            if not mask[row, t]:
                assert not got[row, t].any()
                continue
            least = min(before, default=0.0)
            expected = [1.0, len(before), sum(before), least, math.exp(least)]
            assert got[row, t].tolist() == pytest.approx(expected)
            before.append(float(logps[row, t]) if logps[row, t].isfinite() else -30.0)


def test_least_squares_are_those_of_a_plain_solve_that_forgets() -> None:
    fit, features, targets = LeastSquares(0.5), random(3, 40, 4), random(3, 40)
    features[..., 0], features[..., 3] = 1.0, 0.0  # a constant, and a feature that says nothing
    fit.start(4, torch.tensor(0.7, dtype=torch.float64))
    assert fit.values(features[0]).tolist() == pytest.approx([0.7] * 40)
    for x, y in zip(features, targets, strict=True):
        assert fit.learn(x, y, alone())
    weights = torch.tensor([0.25, 0.5, 1.0]).double().sqrt().repeat_interleave(40)[:, None]
    x, y = (weights * features.flatten(0, 1))[:, :3], weights[:, 0] * targets.flatten()
    ridge = 1e-3 * (x * x).sum(0)
    ridge[0] = 0.0
    x, y = torch.cat([x, ridge.sqrt().diag()]), torch.cat([y, y.new_zeros(3)])
    expected = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    assert fit.weights is not None
    torch.testing.assert_close(fit.weights[:3], expected, atol=1e-6, rtol=0)
    before = fit.weights.clone()
    assert not fit.learn(features[0] * torch.inf, targets[0], alone())
    assert torch.equal(fit.weights, before)


def test_a_shared_trunk_reads_states_of_the_pass_for_the_anchor(embedded: Any, rollouts: Responses) -> None:
    """The states kept from it are those of a pass of their own, and the critic learns with them what they decide."""
    model, rows = copy.deepcopy(embedded[0]).float(), rollouts.rows
    critic = critic_of(model, alone(), trunk="shared")
    scorer = critic._scorer
    scorer.keep_states()
    ids, mask = (
        torch.cat([vars(rows)[f"prompt_{name}"], vars(rows)[f"completion_{name}"]], dim=1)
        for name in ("ids", "mask")
    )
    with torch.no_grad():
        scorer.score_padded(model, ids, mask, 8)
    kept = scorer.kept_states(rows.completion_mask)
    assert kept is not None
    assert scorer.kept_states(rows.completion_mask) is None
    index = torch.tensor([9, 0, 6])
    own = policy_states(critic._trainer, scorer, rows.take(index))
    torch.testing.assert_close(kept.of(index, rows.wanted[index]), own, atol=1e-5, rtol=1e-4)
    with_kept, without = critic, critic_of(model, alone(), trunk="shared")
    for _ in range(3):
        one = with_kept.learn(replace(rollouts, states=kept))
        other = without.learn(rollouts)
    torch.testing.assert_close(one[0], other[0], atol=1e-3, rtol=1e-3)
    assert one[1]["critic_explained_variance"] > 0.5


def test_it_learns_and_the_policy_does_not_move(embedded: Any, rollouts: Responses) -> None:
    """A return at the end that the first token decides: the critic knows it after that token, and not before."""
    model = copy.deepcopy(embedded[0]).float()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    critic = critic_of(model, alone(), learning_rate=4e-3, epochs=8, value_clip=0.5)
    rows, rewards = rollouts.rows, rollouts.rewards
    whole = torch.ones_like(rows.completion_mask)
    rows = replace(rows, completion_mask=whole, wanted=whole.bool())
    late = torch.zeros_like(rewards)
    late[:, -1] = rewards[:, 0]
    for _ in range(3):
        figures = critic.learn(replace(rollouts, rows=rows, rewards=late))[1]
    assert figures["critic_explained_variance"] > 0.6
    curve = [value for value in critic.curves["critic_explained_variance"] if value is not None]
    assert min(curve[1:]) > 0.8 > curve[0]
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


@pytest.mark.parametrize("knobs", [{"epochs": 2, "replay": 1}, {"trunk": "shared"}])
def test_two_processes_fit_what_one_does(embedded: Any, rollouts: Responses, knobs: dict[str, Any]) -> None:
    model = copy.deepcopy(embedded[0]).float()
    whole = critic_of(model, alone(), **knobs)
    expected = [whole.learn(rollouts)[0] for _ in range(2)][-1]
    shared = {"slots": [None, None], "barrier": threading.Barrier(2, timeout=60)}
    policies = [copy.deepcopy(model) for _ in range(2)]  # one for each thread, as processes have
    both = [critic_of(policy, InThreads(2, index, shared), **knobs) for index, policy in enumerate(policies)]
    got: list[Tensor] = [torch.zeros(0)] * 2
    for each, policy in zip(both, policies, strict=True):  # tried before the threads begin
        assert each._scorer.pass_of(policy) == "packed"

    def run(index: int) -> None:
        part = torch.arange(8) + 8 * index
        for _ in range(2):
            got[index] = both[index].learn(part_of(rollouts, part))[0]

    threads = [threading.Thread(target=run, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.testing.assert_close(torch.cat(got), expected, atol=1e-4, rtol=1e-4)
    assert all(both[0].curves[name] == both[1].curves[name] for name in whole.curves)
    one, other = (each.linear.weights for each in both)
    assert one is not None
    assert other is not None
    assert torch.equal(one, other)
    for each, same in zip(parameters(both[0]), parameters(both[1]), strict=True):
        assert torch.equal(each, same)


EVERYTHING = {
    "epochs": 2, "value_clip": 0.2, "replay": 1, "value_trace": 0.9, "trace_length": 0.1, "correction": "v-trace",
    "layers": 1, "warmup_batches": 1,
}  # fmt: skip


@pytest.mark.parametrize("knobs", [EVERYTHING, {"trunk": "shared", "warmup_batches": 1}])
def test_a_run_resumed_within_a_rollout_batch_has_the_same_bits(
    fit: Callable[..., Any], knobs: dict[str, Any], tmp_path: Path
) -> None:
    """With a lag, so that ratios are not 1. While the critic warms up, the policy does not move."""
    settings = {
        "generation_batch_size": 16, "per_device_train_batch_size": 8, "max_steps": 6, "logging_steps": 2,
        "save_strategy": "steps", "save_steps": 1, "advantages": "gae", "critic": knobs, "anchor": "rollout",
        "behaviour_lag": 1,
    }  # fmt: skip
    whole = fit(CTPOTrainer, CTPOConfig, **settings)
    folder = Path(whole.args.output_dir)
    resumed = fit(CTPOTrainer, CTPOConfig, **settings, resume=str(folder / "checkpoint-5"))
    for name, each in whole.model.named_parameters():
        assert torch.equal(each, resumed.model.get_parameter(name)), name
    files = []
    for each in (whole, resumed):
        each.critic.export(tmp_path / "critic.safetensors")
        files.append((tmp_path / "critic.safetensors").read_bytes())
    assert files[0] == files[1]
    saved = load_file(tmp_path / "critic.safetensors")
    assert len(saved["linear"]) == (5 if knobs is EVERYTHING else 5 + whole.model.config.hidden_size)
    assert ("head.weight" in saved) == (knobs is EVERYTHING)
    assert resumed.critic.batches == whole.critic.batches == 3
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert {"critic_explained_variance", "critic_value_loss"} <= records[-1].keys()
    assert ("critic_grad_norm" in records[-1]) == (knobs is EVERYTHING)
    profile = [json.loads(line) for line in (folder / "profile.jsonl").read_text().splitlines()]
    assert len(profile[-1]["critic_explained_variance"]) == len(profile[-1]["edge"])
    assert any("objective/critic_explained_variance" in line for line in whole.state.log_history)
    first, second, fourth = (load_file(folder / f"checkpoint-{n}" / "model.safetensors") for n in (1, 2, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], fourth[name]) for name in first)


def test_equal_returns_give_no_advantage(embedded: Any, rollouts: Responses) -> None:
    critic = critic_of(embedded[0], alone())
    assert critic.learn(rollouts)[0].any()
    last = rollouts.rows.wanted.cumsum(1).argmax(1)
    equal = torch.zeros_like(rollouts.rewards).index_put((torch.arange(16), last), torch.ones(16).double())
    advantages, figures = critic.learn(replace(rollouts, rewards=equal))
    assert not advantages.any()
    assert "critic_explained_variance" not in figures


def test_lora_trains_the_adapter_alone(embedded: Any, rollouts: Responses) -> None:
    pytest.importorskip("peft")
    model = copy.deepcopy(embedded[0]).float()
    critic = critic_of(model, alone(), lora_r=4, epochs=3)
    assert critic.model is not None
    before = {name: each.clone() for name, each in critic.model.named_parameters()}
    critic.learn(rollouts)
    moved = {name for name, each in critic.model.named_parameters() if not torch.equal(each, before[name])}
    assert moved == set(critic.model.learned())
    assert all("lora_" in name or name.startswith("head") for name in moved)


def test_a_token_classifier_can_be_the_critic(embedded: Any, rollouts: Responses, tmp_path: Path) -> None:
    from transformers import AutoModelForTokenClassification

    model = copy.deepcopy(embedded[0]).float()
    config = copy.deepcopy(model.config)
    config.num_labels = 1
    AutoModelForTokenClassification.from_config(config).save_pretrained(tmp_path)
    critic = critic_of(model, alone(), model=str(tmp_path))
    assert critic.learn(rollouts)[0].isfinite().all()
    with pytest.raises(UserError, match=r"critic.model=/nowhere cannot be loaded"):
        critic_of(model, alone(), model="/nowhere")
    with pytest.raises(UserError, match=r"critic.layers=3 is more than the trunk has; use 1 to 2"):
        critic_of(model, alone(), layers=3)


def test_an_update_that_is_not_finite_is_skipped(embedded: Any, rollouts: Responses) -> None:
    model = copy.deepcopy(embedded[0]).float()
    critic = critic_of(model, alone(), epochs=2)
    assert critic.model is not None
    critic.learn(rollouts)
    with torch.no_grad():
        critic.model.head.bias.fill_(torch.inf)
    before = [each.clone() for each in critic.model.parameters()]
    with pytest.raises(UserError, match=r"critic: 3 updates in a row were skipped"):
        critic.learn(rollouts)
    assert all(torch.equal(a, b) for a, b in zip(critic.model.parameters(), before, strict=True))


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"rate": 1}, "critic.rate is unknown"),
        ({"trunk": "own"}, "critic.trunk='own' is not one of none, shared, copy"),
        ({"epochs": 1.5}, "critic.epochs=1.5 is out of range; use a whole number from 1 up"),
        ({"trace": 2}, "critic.trace=2 is out of range; use 0 to 1"),
        ({"learning_rate": float("nan")}, "critic.learning_rate=nan is out of range"),
        ({"learning_rate": None}, "critic.learning_rate=None is out of range"),
        ({"layers": 1, "trunk": "shared"}, "critic.layers=1 has no effect with trunk='shared'"),
        ({"memory": 0}, "critic.memory=0 is out of range; use more than 0"),
        ({"value_clip": 0.2}, "critic.value_clip=0.2 has no effect with epochs=1"),
        ({"c_bar": 2.0}, "critic.c_bar=2.0 has no effect without correction='v-trace'"),
        ({"trace": 0.9, "trace_length": 0.1}, "set too; drop one"),
        ({"warmup_epochs": 3}, "critic.warmup_epochs=3 has no effect with warmup_batches=0"),
        ({"model": 3}, "critic.model=3 is no name"),
    ],
)
def test_knobs_are_checked(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="critic") as error:
        critic_knobs(knobs)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "knobs", [{}, {"trunk": "shared", "memory": 2.0}, {"epochs": 2}, {"trace_length": 0.1}, {"trunk": "copy"}]
)
def test_the_knobs_of_a_saved_recipe_can_be_given_again(knobs: dict[str, Any]) -> None:
    settings = critic_knobs(knobs)
    assert critic_knobs(settings) == settings
    assert settings["trunk"] == knobs.get("trunk", "copy" if "epochs" in knobs else "none")


def test_settings_that_go_together() -> None:
    with pytest.raises(ValueError, match=r"critic has no effect with advantages='trl'; set advantages=gae"):
        CTPOConfig("unused", use_cpu=True, report_to="none", critic={})
    plain = CTPOConfig("unused", use_cpu=True, report_to="none", objective="ppo")
    with pytest.warns(NoCriticWarning, match="PPO's loss alone"):
        warn_without_critic(plain)
    assert policy_trace(torch.ones(2, 50), critic_knobs({"trace_length": 0.05})).tolist() == pytest.approx(
        [0.6] * 2
    )
