"""The policy that samples may be older than the one that learns, by an exact number of rollout batches."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from launcher import finish, launch_many

from ctpo.training import CTPOConfig, CTPOTrainer

LAG = 2
UPDATES = 4  # per rollout batch, as SMALL has them
BATCHES = 5


class Watched(CTPOTrainer):
    """Keeps the prompts, the rollouts and the policy's age of each rollout batch."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.batches: list[tuple[list[str], dict[str, Any]]] = []
        self.ages: list[int] = []

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        rollouts: dict[str, Any] = super()._generate_and_score_completions(inputs)
        self.batches.append(([row["prompt"] for row in inputs], rollouts))
        self.ages.append(self.behaviour.age)
        return rollouts


@pytest.fixture(scope="module")
def lagged(fit: Callable[..., Any]) -> Any:
    """A run of five rollout batches with a lag of two, saved after every second update."""
    return fit(
        Watched, CTPOConfig, behaviour_lag=LAG, anchor="rollout", max_steps=BATCHES * UPDATES,
        save_strategy="steps", save_steps=2,
    )  # fmt: skip


def _tokens(rollouts: dict[str, Any]) -> list[list[int]]:
    pairs = zip(rollouts["completion_ids"].tolist(), rollouts["completion_mask"].bool().tolist(), strict=True)
    return [[token for token, there in zip(row, mask, strict=True) if there] for row, mask in pairs]


@pytest.mark.parametrize("batch", range(1, BATCHES + 1))
def test_a_batch_is_sampled_by_the_weights_of_lag_batches_ago(
    lagged: Any, arithmetic: Any, sandbox: Any, batch: int
) -> None:
    """Batch n, against a checkpoint of the run that is loaded again and sampled with the same random numbers."""
    from ctpo.evaluation.model import load_model
    from ctpo.rollout import ToolRunner, TransformersEngine
    from ctpo.rollout.noise import row_uniforms
    from ctpo.tasks.arithmetic import model_path
    from ctpo.training.sampling.rollout_func import sampling_of

    prompts, rollouts = lagged.batches[batch - 1]
    written = Path(lagged.args.output_dir)

    def sampled_after(batches: int) -> list[Any]:
        source = written / f"checkpoint-{batches * UPDATES}" if batches > 0 else model_path()
        engine = TransformersEngine(*load_model(str(source)), eos_token_ids=lagged.eos_token_ids)
        uniforms = row_uniforms(
            range(len(prompts)), lagged.max_completion_length, seed=lagged.args.seed, stream=batch - 1
        )
        ids = [lagged.processing_class.encode(prompt, add_special_tokens=False) for prompt in prompts]
        tools = ToolRunner(arithmetic.tool, sandbox)
        return engine.generate(ids, sampling_of(lagged), partner=tools, uniforms=uniforms)

    expected = sampled_after(batch - LAG - 1)
    assert _tokens(rollouts) == [rollout.completion_ids for rollout in expected]
    for logps, rollout in zip(rollouts["sampling_per_token_logps"], expected, strict=True):
        assert logps[: len(rollout.logps)].tolist() == rollout.logps
    if batch > 1:  # the weights that learn would have sampled other responses
        assert _tokens(rollouts) != [rollout.completion_ids for rollout in sampled_after(batch - 1)]


def test_ratios_are_off_from_the_first_update_and_the_record_says_how_old(lagged: Any) -> None:
    assert lagged.ages == [0, 1, 2, 2, 2]
    logs = [entry for entry in lagged.state.log_history if "loss" in entry]
    assert [entry["objective/behaviour_lag"] for entry in logs] == [0, 1, 2, 2, 2]
    _, rollouts = lagged.batches[-1]
    present = _logps_of(lagged, rollouts)
    drift = (present - rollouts["sampling_per_token_logps"]) * _mask(rollouts)
    assert drift.abs().max() > 1e-2


def _mask(rollouts: dict[str, Any]) -> torch.Tensor:
    mask: torch.Tensor = rollouts["completion_mask"] * rollouts["tool_mask"]
    return mask


def _logps_of(trainer: Any, rollouts: dict[str, Any]) -> torch.Tensor:
    """Log-probs of the responses under the weights that first learned from them, computed by transformers alone."""
    from transformers import AutoModelForCausalLM

    source = Path(trainer.args.output_dir) / f"checkpoint-{(BATCHES - 1) * UPDATES}"
    model = AutoModelForCausalLM.from_pretrained(source)
    ids = torch.cat([rollouts["prompt_ids"], rollouts["completion_ids"]], dim=1)
    mask = torch.cat([rollouts["prompt_mask"], rollouts["completion_mask"]], dim=1)
    places = (mask.cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, position_ids=places).logits
    length = rollouts["completion_ids"].shape[1]
    logps = logits[:, -length - 1 : -1].log_softmax(dim=-1)
    gathered: torch.Tensor = logps.gather(2, rollouts["completion_ids"].unsqueeze(2)).squeeze(2)
    return gathered


def test_resumed_in_the_middle_of_a_batch_it_ends_with_the_same_bits(
    lagged: Any, fit: Callable[..., Any]
) -> None:
    """From a checkpoint in the third batch, because the weights that sample the next two are older than it."""
    keys: dict[str, Any] = {"behaviour_lag": LAG, "anchor": "rollout", "max_steps": BATCHES * UPDATES}
    checkpoint = Path(lagged.args.output_dir) / f"checkpoint-{2 * UPDATES + 2}"
    resumed = fit(Watched, CTPOConfig, **keys, resume=str(checkpoint))
    assert resumed.ages == [2, 2]
    for (name, one), other in zip(lagged.model.named_parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_evaluation_uses_the_weights_that_learn(lagged: Any) -> None:
    before = [weight.clone() for weight in lagged.model.parameters()]
    with lagged.behaviour.sampling():
        assert not all(map(torch.equal, before, lagged.model.parameters()))
    assert all(map(torch.equal, before, lagged.model.parameters()))


def test_passes_over_a_rollout_batch_visit_its_mini_batches_again(fit: Callable[..., Any]) -> None:
    """Two rollout batches make sixteen updates, each minibatch twice and with the same anchor."""
    seen: list[tuple[int, ...]] = []

    class Counting(Watched):
        def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
            seen.append(
                (
                    hash(inputs["completion_ids"].numpy().tobytes()),
                    inputs["sampling_per_token_logps"].data_ptr(),
                )
            )
            return super()._compute_loss(model, inputs)

    trainer = fit(Counting, CTPOConfig, anchor="rollout", num_iterations=2, max_steps=4 * UPDATES)
    assert len(trainer.batches) == 2
    passes = [seen[first : first + UPDATES] for first in range(0, len(seen), UPDATES)]
    assert passes[0] == passes[1]
    assert passes[2] == passes[3]
    assert len(set(passes[0] + passes[2])) == 2 * UPDATES


def test_two_processes_sample_what_one_does(tmp_path: Path) -> None:
    """The rewards of the lagged batches are those of one process, because both processes hold the older weights."""
    words = (
        "rollout_batches=4 generation_batch_size=16 num_generations=4 train_problems=64 eval_problems=4 eval_every=0 "
        "transcripts=0 max_completion_length=80 save_steps=1000 learning_rate=1e-3 behaviour_lag=2"
    ).split()
    rewards = []
    for processes in (1, 2):
        run = tmp_path / str(processes)
        command = ["train", *words, f"per_device_train_batch_size={8 // processes}", f"output_dir={run}"]
        started = launch_many(processes, command, run.with_suffix(".log"))
        assert [finish(process) for process in started] == [0] * processes
        rewards.append(_column(run, "reward"))
        assert _column(run, "behaviour_lag") == [0, 1, 2, 2]
    assert rewards[0] == pytest.approx(rewards[1], abs=1e-6)


def _column(run: Path, name: str) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"behaviour_lag": -1}, "behaviour_lag=-1 is negative"),
        ({"behaviour_lag": 2, "anchor": "old"}, "behaviour_lag=2 needs anchor='rollout'"),
    ],
)
def test_what_a_lag_cannot_be_combined_with(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CTPOConfig("unused", use_cpu=True, **settings)
