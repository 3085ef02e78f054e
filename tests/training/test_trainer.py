"""CTPOTrainer inside TRL: what it must change, what it must not change, and that TRL's methods are still the same."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from beside_trl import GRPO_AS_IN_TRL, ONE_BATCH, PLAIN, assert_trained_alike, parameters, stock_trainer
from trl import GRPOConfig, GRPOTrainer

from ctpo import CTPOConfig, CTPOTrainer
from ctpo.objectives import preset
from ctpo.training.step.trainer import SEAMS
from ctpo.training.step.warnings import AnchorMismatchWarning, InertObjectiveWarning, warn_if_inert


@pytest.mark.parametrize("name", SEAMS)
def test_trl_still_has_this_seam(name: str) -> None:
    """If this fails after an upgrade of TRL, read the method again before you change SEAMS."""
    assert tuple(inspect.signature(getattr(GRPOTrainer, name)).parameters) == SEAMS[name]


def test_overrides_are_exactly_the_named_seams() -> None:
    """Whichever of the trainer's own classes overrides them."""
    own = [each for each in CTPOTrainer.__mro__ if each.__module__.startswith("ctpo.")]
    ours = {name for each in own for name, value in vars(each).items() if inspect.isfunction(value)}
    assert {name for name in ours if hasattr(GRPOTrainer, name)} - {"__init__"} == set(SEAMS)


@pytest.fixture(scope="module")
def stock(fit: Callable[..., Any]) -> Any:
    return stock_trainer(fit)


@pytest.fixture(scope="module")
def ctpo(fit: Callable[..., Any]) -> Any:
    """Our trainer with its defaults, after one rollout batch."""
    return fit(CTPOTrainer, CTPOConfig, **ONE_BATCH)


@pytest.fixture(scope="module")
def reported(fit: Callable[..., Any]) -> Any:
    """The same with the rollout engine's log-probs for the anchor."""
    return fit(CTPOTrainer, CTPOConfig, anchor="rollout", **ONE_BATCH)


def test_with_grpo_it_trains_as_trl_does(fit: Callable[..., Any], stock: Any, ctpo: Any) -> None:
    """With the same clipping and reduction, parameters are the same after eight updates, four of them off-policy."""
    ours = fit(CTPOTrainer, CTPOConfig, objective="grpo", objective_kwargs=GRPO_AS_IN_TRL, **PLAIN)
    assert_trained_alike(ours, stock, ctpo)


def test_the_kl_penalty_trains_as_trls_does(fit: Callable[..., Any]) -> None:
    """TRL multiplies the estimate by the importance ratio (`use_bias_correction_kl`); so do we, where it is on."""
    loss = {"objective": "grpo", "objective_kwargs": GRPO_AS_IN_TRL, "beta": 0.5}
    ours = fit(CTPOTrainer, CTPOConfig, **loss, **PLAIN, **ONE_BATCH)
    theirs = stock_trainer(fit, beta=0.5, **ONE_BATCH)
    assert_trained_alike(
        ours, theirs, stock_trainer(fit, beta=0.5, use_bias_correction_kl=False, **ONE_BATCH)
    )


def test_ctpo_trains_otherwise(fit: Callable[..., Any], stock: Any) -> None:
    assert (parameters(fit(CTPOTrainer, CTPOConfig)) - parameters(stock)).abs().max() > 1e-4


def test_the_rollout_engines_log_probs_are_as_good_an_anchor(ctpo: Any, reported: Any) -> None:
    assert (ctpo.args.anchor, reported.args.anchor) == ("old", "rollout")
    torch.testing.assert_close(parameters(ctpo), parameters(reported), atol=2e-4, rtol=0)


@pytest.mark.parametrize("reduction", ["token-mean", "seq-mean-token-mean"])
def test_accumulating_micro_batches_is_exact(fit: Callable[..., Any], reduction: str) -> None:
    """Two micro-batches of four rows, of different lengths, are one minibatch of eight."""
    settings = {"objective_kwargs": {"reduction": reduction}, **PLAIN, **ONE_BATCH}
    whole = fit(CTPOTrainer, CTPOConfig, **settings)
    parts = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    halves = fit(CTPOTrainer, CTPOConfig, **parts, **settings)
    torch.testing.assert_close(parameters(whole), parameters(halves), atol=2e-5, rtol=0)


@pytest.fixture(scope="module")
def off_policy(fit: Callable[..., Any]) -> Any:
    return fit(CTPOTrainer, CTPOConfig, max_steps=3)  # stops in the middle of a rollout batch


def test_loss_is_the_objective_on_model_tokens_alone(off_policy: Any) -> None:
    """Recomputed by hand, from a plain forward pass, with tool tokens and padding cut out of every row."""
    inputs = off_policy._buffered_inputs[3]
    mask = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
    assert mask.sum() < inputs["completion_mask"].sum()  # there are tool tokens
    off_policy.model.train()
    loss = off_policy._compute_loss(off_policy.model, inputs)

    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    logits = off_policy.model(ids, attention_mask=attention).logits[:, inputs["prompt_ids"].size(1) - 1 : -1]
    logps = logits.log_softmax(-1).gather(-1, inputs["completion_ids"][..., None]).squeeze(-1)
    total, tokens = 0.0, mask.sum()
    for row in range(len(ids)):
        keep = mask[row]
        total += preset("ctpo", reduction="sum")(
            logps[row, keep][None],
            inputs["old_per_token_logps"][row, keep][None],
            inputs["advantages"][row : row + 1],
            torch.ones(1, int(keep.sum()), dtype=torch.bool),
        ).loss
    torch.testing.assert_close(loss, total / tokens, atol=1e-5, rtol=1e-5)


def test_log_probs_of_tool_tokens_do_not_matter(off_policy: Any) -> None:
    inputs = dict(off_policy._buffered_inputs[3])
    off_policy.model.train()
    before = off_policy._compute_loss(off_policy.model, inputs)
    tool = (inputs["completion_mask"] * inputs["tool_mask"]) == 0
    inputs["old_per_token_logps"] = torch.where(tool, float("nan"), inputs["old_per_token_logps"])
    assert torch.equal(before, off_policy._compute_loss(off_policy.model, inputs))


def test_statistics_reach_the_log(off_policy: Any) -> None:
    trainer = off_policy
    trainer.model.train()
    trainer.objective_stats["train"].flush(trainer.accelerator)
    trainer._compute_loss(trainer.model, trainer._buffered_inputs[3])
    logs: dict[str, float] = {}
    trainer.log(logs)
    assert 0 <= logs["clip_ratio/region_mean"] <= 1
    assert logs["objective/log_ratio_std"] > 0
    assert logs["objective/tokens"] == int(
        (trainer._buffered_inputs[3]["completion_mask"] * trainer._buffered_inputs[3]["tool_mask"]).sum()
    )


def test_kl_penalty_with_beta(fit: Callable[..., Any], ctpo: Any) -> None:
    """beta > 0 loads TRL's reference model and adds the k3 estimate. At the start the two models agree."""
    trainer = fit(CTPOTrainer, CTPOConfig, beta=0.1, max_steps=4)
    assert trainer.ref_model is not None
    logged = [row["kl"] for row in trainer.state.log_history if "kl" in row]
    assert logged
    assert logged[0] > 0
    assert (parameters(trainer) - parameters(ctpo)).abs().max() > 1e-5


def test_warns_when_every_ratio_is_one(tmp_path: Any) -> None:
    keys = {"per_device_train_batch_size": 8, "num_generations": 4, "use_cpu": True}
    with pytest.warns(InertObjectiveWarning, match="steps_per_generation=1"):
        warn_if_inert(CTPOConfig(str(tmp_path), steps_per_generation=1, **keys))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_inert(CTPOConfig(str(tmp_path), steps_per_generation=2, **keys))
        warn_if_inert(CTPOConfig(str(tmp_path), num_iterations=2, **keys))


def test_another_config_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="GRPOConfig; CTPOTrainer takes a CTPOConfig"):
        CTPOTrainer("unused", args=GRPOConfig(str(tmp_path), use_cpu=True))


def test_warns_when_engine_and_trainer_disagree(fit: Callable[..., Any], tmp_path: Any) -> None:
    """With learned absolute positions, TRL's padding on the left scores another sequence than was sampled."""
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    from ctpo.tasks.arithmetic import model_path

    tokenizer = AutoTokenizer.from_pretrained(model_path())
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=256,
        n_embd=16,
        n_layer=1,
        n_head=2,
        eos_token_id=tokenizer.eos_token_id,
    )
    torch.manual_seed(0)
    model = GPT2LMHeadModel(config)
    model.transformer.wpe.weight.data.mul_(100)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    settings: dict[str, Any] = {"max_steps": 1, "max_completion_length": 8, "anchor": "rollout"}
    with pytest.warns(AnchorMismatchWarning, match="absolute positions"):
        fit(CTPOTrainer, CTPOConfig, model=str(tmp_path), **PLAIN, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error", AnchorMismatchWarning)
        fit(CTPOTrainer, CTPOConfig, **settings)


def test_evaluation_keeps_its_statistics_apart(off_policy: Any) -> None:
    trainer = off_policy
    trainer.model.train()
    trainer._compute_loss(trainer.model, trainer._buffered_inputs[3])
    trainer.model.eval()
    logs: dict[str, float] = {}
    trainer.log(logs)
    assert "eval_clip_ratio/region_mean" not in logs
    trainer.model.train()
    assert trainer.objective_stats["train"].state_dict()


def test_a_task_or_its_tool_is_enough_for_our_rollouts(
    fit: Callable[..., Any], arithmetic: Any, reported: Any
) -> None:
    """Whoever asks for them, the parameters are those of the rollout function that is written out."""

    def ours(**arguments: Any) -> Any:
        def trainer_class(**given: Any) -> Any:
            given.pop("rollout_func")
            if "task" in arguments:
                given.pop("reward_funcs")
            return CTPOTrainer(**given, **arguments)

        trainer: Any = fit(trainer_class, CTPOConfig, anchor="rollout", max_steps=4)  # type: ignore[arg-type]
        return trainer

    for arguments in ({"task": arithmetic}, {"tools": [arithmetic.tool]}):
        trainer = ours(**arguments)
        assert torch.equal(parameters(trainer), parameters(reported)), arguments
        assert trainer.rollout_account.tool_calls > 0
    assert trainer.own_rollouts._rollout is None  # the sandbox is closed


def test_arguments_that_exclude_each_other(tmp_path: Any, arithmetic: Any) -> None:
    def make(anchor: str = "old", **arguments: Any) -> None:
        settings = {name: arguments.pop(name) for name in ("min_p",) if name in arguments}
        config = CTPOConfig(str(tmp_path), use_cpu=True, anchor=anchor, **settings)
        CTPOTrainer("unused", args=config, **arguments)

    with pytest.raises(ValueError, match="anchor='rollout' needs the rollout engine's log-probs"):
        make("rollout", environment_factory=dict)
    with pytest.raises(ValueError, match="and rollout_func is given; drop one of them"):
        make(tools=[arithmetic.tool], rollout_func=print)
    with pytest.raises(ValueError, match=r"give the tools to the task: Task\(tools=\[...\]\)"):
        make(task="arithmetic", tools=[arithmetic.tool])
    with pytest.raises(ValueError, match="environment_factory is sampled by TRL"):
        make(task="arithmetic", environment_factory=dict)
    with pytest.raises(ValueError, match=r"min_p=0\.1 has no effect: our engine samples"):
        make("rollout", min_p=0.1)
