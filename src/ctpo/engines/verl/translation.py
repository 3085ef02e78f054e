"""A recipe as keys of verl's configuration.

Nothing here imports verl, Ray or torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, Final

from ctpo.adapters.verl_data import AGENT
from ctpo.engines.choice import ASYNC, SYNC
from ctpo.engines.verl.accounted import check_counterparts
from ctpo.engines.verl.batches import Batches, batches_of, rollout_batches_of, settings_of
from ctpo.engines.verl.site import CPU_ROLLOUT, RAY_SHIPPING, Site, environment
from ctpo.errors import UserError
from ctpo.training.config.critic import CRITIC, critic_knobs
from ctpo.training.config.recipe import Recipe
from ctpo.training.config.sources import preset_knobs

_ACTOR, _ROLLOUT, _MODEL = (f"actor_rollout_ref.{part}" for part in ("actor", "rollout", "model"))
_REFERENCE: Final = "actor_rollout_ref.ref"
_AGGREGATIONS: Final = ("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm")
_ADVANTAGES: Final = {
    "trl": "grpo",
    "rloo": "rloo",
    "opo": "opo",
    "gae": "gae",
    "reinforce++": "reinforce_plus_plus",
    "reinforce++-baseline": "reinforce_plus_plus_baseline",
}
_CORRECTIONS: Final = {"recipe": ("sequence", 5.0), "tis": ("token", 2.0)}
"""Truncated importance weights: the level that verl calls them by, and the default of the knob `cap`."""
_OBJECT_STORE_BYTES: Final = 500_000_000
_SCHEDULES: Final = ("constant", "constant_with_warmup", "linear", "cosine")
_PLAIN: Final = "{% for message in messages %}{{ message.content }}{% endfor %}"
_OPTIMIZERS: Final = ("adamw_torch", "adamw_torch_fused")
_FLOAT32: Final = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
_NO_LIMIT: Final = 1e9
"""What verl takes for no limit on a norm or a range."""
_CRITIC: Final = {
    "learning_rate": "critic.optim.lr",
    "weight_decay": "critic.optim.weight_decay",
    "max_grad_norm": "critic.optim.clip_grad",
    "epochs": "critic.ppo_epochs",
    "value_clip": "critic.cliprange_value",
    "model": "critic.model.path",
    "discount": "algorithm.gamma",
    "trace": "algorithm.lam",
    "warmup_batches": "trainer.critic_warmup",
}
"""Knobs of a critic, each with verl's key."""


def translate(
    recipe: Recipe, given: Mapping[str, Any], site: Site, overrides: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The keys of verl's configuration that run this recipe, each with its value.

    A key that verl's configuration does not have yet begins with `+`, as in Hydra.

    Args:
        recipe: the keys of the recipe itself, and
        given: the settings of `CTPOConfig` that it gives, as `ctpo.training.config.settings.check` returns them.
        site: what the run finds on its machine.
        overrides: keys of verl's configuration that the user sets. They replace ours.

    Raises:
        UserError: if a key has no counterpart in verl, with the reason.
    """
    check_counterparts(recipe, given)
    settings = settings_of(given)
    batches = batches_of(settings, site.processes * site.machines)
    length = rollout_batches_of(recipe, settings, batches, site.train_problems)
    keys: dict[str, Any] = {
        **_data(recipe, settings, batches, site),
        **_objective(settings),
        **_anchor(settings, site),
        **_optimiser(settings, batches, site),
        **_model(settings, batches, site),
        **_critic(settings, batches, site),
        **_rollout(recipe, settings, site),
        **_asynchronous(batches, site),
        **_run(recipe, settings, batches, site, length),
        **_ray(site),
    }
    if not site.accelerator:
        keys |= _cpu(settings) | (_critic_on_cpu() if settings.advantages == "gae" else {})
    for name, value in (overrides or {}).items():
        keys.pop(f"+{name}", None)
        keys.pop(name.removeprefix("+"), None)
        keys[name] = value
    return keys


def _data(recipe: Recipe, settings: SimpleNamespace, batches: Batches, site: Site) -> dict[str, Any]:
    return {
        "data.train_files": str(site.train_file),
        "data.val_files": str(site.test_file),
        "data.train_batch_size": batches.prompts,
        "data.val_batch_size": site.test_problems,
        "data.max_prompt_length": recipe.max_prompt_length or site.prompt_tokens,
        "data.max_response_length": settings.max_completion_length,
        "data.filter_overlong_prompts": False,
        "data.truncation": "error",
        "data.shuffle": settings.shuffle_dataset,
        "data.seed": settings.seed,
    }


def _objective(settings: SimpleNamespace) -> dict[str, Any]:
    """The preset goes to our adapter. Its reduction becomes verl's, because verl reduces."""
    knobs = dict(settings.objective_kwargs or {})
    defaults = preset_knobs()[settings.objective]
    reduction = knobs.pop("reduction", defaults.get("reduction", "token-mean"))
    if reduction not in _AGGREGATIONS:
        raise UserError(
            f"objective_kwargs.reduction={reduction!r} cannot run with engine=verl; use one of "
            f"{', '.join(_AGGREGATIONS)}"
        )
    length = knobs.pop("norm_length", defaults.get("norm_length"))
    if reduction != "seq-mean-token-sum-norm":
        length = None
    if settings.advantages not in _ADVANTAGES:
        raise UserError(
            f"advantages={settings.advantages!r} cannot run with engine=verl; use one of {', '.join(_ADVANTAGES)}"
        )
    if settings.scale_rewards not in ("group", "none"):
        raise UserError(
            f"scale_rewards={settings.scale_rewards!r} cannot run with engine=verl, which divides by the standard "
            "deviation of the group or not at all; use group or none"
        )
    return {
        "algorithm.adv_estimator": _ADVANTAGES[settings.advantages],
        "algorithm.norm_adv_by_std_in_grpo": settings.scale_rewards == "group",
        "algorithm.use_kl_in_reward": False,
        f"{_ACTOR}.policy_loss._target_": "ctpo.adapters.verl.CTPOPolicyLossConfig",
        f"{_ACTOR}.policy_loss.loss_mode": "ctpo",
        f"+{_ACTOR}.policy_loss.preset": settings.objective,
        f"+{_ACTOR}.policy_loss.knobs": knobs,
        f"{_ACTOR}.loss_agg_mode": reduction,
        f"{_ACTOR}.loss_scale_factor": length,
        f"{_ACTOR}.use_kl_loss": settings.beta > 0,
        f"{_ACTOR}.kl_loss_coef": settings.beta,
        f"{_ACTOR}.kl_loss_type": "low_var_kl",
        f"{_ACTOR}.entropy_coeff": settings.entropy_coef,
    }


def _anchor(settings: SimpleNamespace, site: Site) -> dict[str, Any]:
    """With the anchor at the engine's log-probs nothing is left to correct, and verl calls it bypass mode."""
    if settings.anchor == "old" and site.trainer_mode == ASYNC and not site.accelerator:
        raise UserError(
            "anchor=old with trainer_mode=separate_async cannot run on a CPU, where verl's copy of the old weights is "
            "the same memory as the current ones, so that every ratio would be 1; use anchor=rollout"
        )
    name = settings.rollout_correction
    knobs = dict(settings.rollout_correction_kwargs or {})
    if name == "auto":
        name = "recipe" if settings.anchor == "old" else "none"
    if settings.anchor == "rollout" and name != "none":
        raise UserError(
            f"rollout_correction={name} with anchor=rollout cannot run with engine=verl, whose bypass mode corrects "
            "nothing; use anchor=old or rollout_correction=none"
        )
    level, cap = None, 2.0
    if name in _CORRECTIONS:
        level, cap = _CORRECTIONS[name]
        cap = knobs.pop("cap", cap)
    elif name != "none":
        raise UserError(
            f"rollout_correction={name} is not translated for engine=verl; use none, {' or '.join(_CORRECTIONS)}, and "
            "engine.algorithm.rollout_correction for verl's own"
        )
    for knob, value in knobs.items():
        raise UserError(
            f"rollout_correction_kwargs.{knob}={value!r} cannot run with engine=verl; only cap can"
        )
    correction = "algorithm.rollout_correction"
    return {
        f"{correction}.bypass_mode": settings.anchor == "rollout",
        f"{correction}.rollout_is": level,
        f"{correction}.rollout_is_threshold": cap,
        f"{_ROLLOUT}.calculate_log_probs": True,
    }


def _optimiser(settings: SimpleNamespace, batches: Batches, site: Site) -> dict[str, Any]:
    """The rate changes with every update. verl counts a run's length in steps, so it learns how many updates one has.

    Such a step is a rollout batch, or one minibatch of it if the run is asynchronous.
    """
    schedule, warmup = str(settings.lr_scheduler_type), settings.warmup_steps or 0
    if schedule not in _SCHEDULES:
        raise UserError(
            f"lr_scheduler_type={schedule!r} cannot run with engine=verl; use one of {', '.join(_SCHEDULES)}"
        )
    if settings_optim(settings) not in _OPTIMIZERS:
        raise UserError(
            f"optim={settings_optim(settings)!r} cannot run with engine=verl; use adamw_torch, or name verl's "
            "optimiser by engine.actor_rollout_ref.actor.optim"
        )
    if warmup != int(warmup):
        raise UserError(
            f"warmup_steps={warmup} is a share of the run, which cannot run with engine=verl; give a number of updates"
        )
    optim = f"{_ACTOR}.optim"
    return {
        **_schedule(optim, schedule, int(warmup), batches, site),
        f"{optim}.lr": settings.learning_rate,
        f"{optim}.weight_decay": settings.weight_decay,
        f"{optim}.betas": [settings.adam_beta1, settings.adam_beta2],
        f"{optim}.override_optimizer_config": {"eps": settings.adam_epsilon},
        # transformers takes 0 for no clipping.
        f"{optim}.clip_grad": settings.max_grad_norm or _NO_LIMIT,
        f"{_ACTOR}.ppo_mini_batch_size": batches.minibatch,
        f"{_ACTOR}.ppo_epochs": batches.passes,
        f"{_ACTOR}.shuffle": False,
    }


def _schedule(optim: str, schedule: str, warmup: int, batches: Batches, site: Site) -> dict[str, Any]:
    """A schedule of transformers for verl's optimiser of this name."""
    return {
        f"{optim}._target_": "ctpo.engines.verl.schedule.ScheduleConfig",
        f"+{optim}.schedule": schedule,
        f"+{optim}.updates": batches.passes if site.trainer_mode == ASYNC else batches.updates,
        f"{optim}.lr_warmup_steps": warmup,
    }


def settings_optim(settings: SimpleNamespace) -> str:
    """The name of the optimiser; transformers' own default has no value that can be read without torch."""
    return settings.optim if isinstance(settings.optim, str) else _OPTIMIZERS[0]


def _model(settings: SimpleNamespace, batches: Batches, site: Site) -> dict[str, Any]:
    recompute = settings.activation_checkpointing
    if recompute is None:
        recompute = settings.gradient_checkpointing
    return {
        f"{_MODEL}.path": site.model,
        # Our agent loop writes prompts. verl itself only insists that there is a template.
        **({} if site.chat_template else {f"{_MODEL}.custom_chat_template": _PLAIN}),
        f"{_MODEL}.enable_gradient_checkpointing": bool(recompute),
        f"{_ACTOR}.strategy": "fsdp2",
        f"{_ACTOR}.ppo_micro_batch_size_per_gpu": batches.micro,
        f"{_ACTOR}.fsdp_config.seed": settings.seed,
        f"{_ROLLOUT}.log_prob_micro_batch_size_per_gpu": batches.micro,
        f"{_REFERENCE}.log_prob_micro_batch_size_per_gpu": batches.micro,
    }


def _critic(settings: SimpleNamespace, batches: Batches, site: Site) -> dict[str, Any]:
    """verl's critic, which is a copy of the policy with a head of its own, as ours is with `trunk: copy`."""
    if settings.advantages != "gae":
        return {"critic.enable": False}
    knobs = critic_knobs(settings.critic)
    if knobs["trunk"] != "copy":
        raise UserError(
            f"critic.trunk={knobs['trunk']} cannot run with engine=verl, whose critic is a network of its own; set "
            "critic.trunk=copy"
        )
    targets = {name: knobs[f"value_{name}"] for name in ("discount", "trace")}
    for name, value in targets.items():
        if value is not None and value != knobs[name]:
            raise UserError(
                f"critic.value_{name}={value} cannot run with engine=verl, which has one {name} for advantages and "
                f"targets; set critic.value_{name}={knobs[name]}"
            )
    for name, value in knobs.items():
        known = name in _CRITIC or name == "trunk" or name.removeprefix("value_") in targets
        if not known and value != CRITIC[name]:
            raise UserError(
                f"critic.{name}={value!r} cannot run with engine=verl, whose critic has no such knob"
            )
    given = {
        **knobs,
        "model": knobs["model"] or site.model,
        "max_grad_norm": knobs["max_grad_norm"] or _NO_LIMIT,
        "value_clip": knobs["value_clip"] or _NO_LIMIT,
        "warmup_batches": knobs["warmup_batches"]
        + 1,  # verl counts the first batch at which the policy moves
    }
    micro = {
        f"critic.{name}": batches.micro
        for name in ("ppo_micro_batch_size_per_gpu", "forward_micro_batch_size_per_gpu")
    }
    return {
        "critic.enable": True,
        "critic.strategy": "fsdp2",
        **{key: given[name] for name, key in _CRITIC.items()},
        **_schedule("critic.optim", "constant", 0, batches, site),
        **micro,
    }


def _asynchronous(batches: Batches, site: Site) -> dict[str, Any]:
    """Which processes sample while others train, and how old a response may be. Weights are sent once per batch."""
    if site.trainer_mode == SYNC:
        return {}
    mode = f"trainer.v1.{ASYNC}"
    return {
        "trainer.v1.trainer_mode": ASYNC,
        f"{mode}.parameter_sync_step": batches.prompts // batches.minibatch,
        # verl counts the versions from that of the prompt to the present one, both included.
        "trainer.v1.sampler.max_off_policy_threshold": site.max_staleness + 1,
        f"{_ROLLOUT}.nnodes": site.machines,
        f"{_ROLLOUT}.n_gpus_per_node": site.rollout_processes,
        f"{_ROLLOUT}.checkpoint_engine.backend": "nccl" if site.accelerator else RAY_SHIPPING,
    }


def _rollout(recipe: Recipe, settings: SimpleNamespace, site: Site) -> dict[str, Any]:
    keys = {
        f"{_ROLLOUT}.n": settings.num_generations,
        f"{_ROLLOUT}.temperature": settings.temperature,
        f"{_ROLLOUT}.top_p": settings.top_p,
        f"{_ROLLOUT}.top_k": settings.top_k or -1,
        f"{_ROLLOUT}.seed": settings.seed,
        f"{_ROLLOUT}.val_kwargs.n": 1,
        f"{_ROLLOUT}.val_kwargs.do_sample": True,
        f"{_ROLLOUT}.val_kwargs.temperature": settings.temperature,
        f"{_ROLLOUT}.val_kwargs.top_p": settings.top_p,
        f"{_ROLLOUT}.val_kwargs.top_k": settings.top_k or -1,
        f"{_ROLLOUT}.agent.default_agent_loop": AGENT,
        f"{_ROLLOUT}.agent.agent_loop_config_path": str(site.agent_file),
        f"{_ROLLOUT}.tensor_model_parallel_size": settings.vllm_tensor_parallel_size,
    }
    if recipe.rollout_batch_size is not None:
        keys[f"{_ROLLOUT}.max_num_seqs"] = recipe.rollout_batch_size
    if site.accelerator:
        keys |= {
            f"{_ROLLOUT}.name": "vllm",
            f"{_ROLLOUT}.gpu_memory_utilization": settings.vllm_gpu_memory_utilization,
            f"{_ROLLOUT}.max_model_len": settings.vllm_max_model_length,
            f"{_ROLLOUT}.free_cache_engine": settings.vllm_enable_sleep_mode,
        }
    return keys


def _run(
    recipe: Recipe, settings: SimpleNamespace, batches: Batches, site: Site, length: int
) -> dict[str, Any]:
    reports = [settings.report_to] if isinstance(settings.report_to, str) else list(settings.report_to or ())
    epochs = -(-length * batches.prompts // max(1, site.train_problems))
    saves = -(-int(settings.save_steps) // batches.updates) if settings.save_steps >= 1 else length
    return {
        "trainer.use_v1": True,
        "trainer.nnodes": site.machines,
        "trainer.n_gpus_per_node": site.processes,
        "trainer.total_training_steps": length,
        "trainer.total_epochs": epochs + 1,
        "trainer.test_freq": recipe.eval_every or length,  # the last batch is evaluated always
        "trainer.val_before_train": site.resume_from is None,
        # verl saves after the last rollout batch only if it saves at all, and the model comes from there.
        "trainer.save_freq": length if str(settings.save_strategy) == "no" else min(saves, length),
        **dict.fromkeys(
            ("trainer.max_actor_ckpt_to_keep", "trainer.max_critic_ckpt_to_keep"), _kept(settings)
        ),
        "trainer.default_local_dir": str(site.checkpoints),
        "trainer.resume_mode": "disable" if site.resume_from is None else "resume_path",
        "trainer.resume_from_path": None if site.resume_from is None else str(site.resume_from),
        "trainer.project_name": "ctpo",
        "trainer.experiment_name": f"{recipe.task}-{settings.objective}-s{settings.seed}",
        "trainer.logger": ["console", *(each for each in reports if each not in ("none", "all"))],
    }


def _kept(settings: SimpleNamespace) -> int | None:
    """How many checkpoints are kept: two at least, since a kill may leave the newest without its record."""
    return None if settings.save_total_limit is None else max(settings.save_total_limit, 2)


def _ray(site: Site) -> dict[str, Any]:
    """How Ray is started, or which one is joined. A Ray that runs knows its own resources."""
    ray = "ray_kwargs.ray_init"
    keys: dict[str, Any] = {f"+{ray}.runtime_env.env_vars": environment(site.accelerator)}
    if site.ray_address is not None:
        return {**keys, f"+{ray}.address": site.ray_address}
    keys[f"+{ray}.include_dashboard"] = False
    if not site.accelerator:
        # Processes of verl ask for places, and share the cores of this machine as they find them.
        places = site.processes + (site.rollout_processes if site.trainer_mode == ASYNC else 0)
        keys |= {f"{ray}.num_cpus": 16, f"+{ray}.num_gpus": places}
        keys[f"+{ray}.object_store_memory"] = _OBJECT_STORE_BYTES
    return keys


def _cpu(settings: SimpleNamespace) -> dict[str, Any]:
    """What our platform for CPUs needs. Ray's word for a place at which a process trains is GPU there too."""
    if settings.bf16 or settings.use_vllm:
        name = "bf16" if settings.bf16 else "use_vllm"
        raise UserError(
            f"{name}=True needs an accelerator with engine=verl, and this machine has none; drop it"
        )
    return {
        "trainer.device": "cpu",
        f"{_MODEL}.use_remove_padding": False,
        f"+{_MODEL}.override_config.attn_implementation": "sdpa",
        f"{_ACTOR}.use_torch_compile": False,
        f"{_ACTOR}.fsdp_config.use_torch_compile": False,
        **{f"+{each}.fsdp_config.mixed_precision": _FLOAT32 for each in (_ACTOR, _REFERENCE)},
        f"{_ROLLOUT}.name": CPU_ROLLOUT,
        f"{_ROLLOUT}.free_cache_engine": False,
        f"{_ROLLOUT}.disable_log_stats": True,
        f"{_ROLLOUT}.agent.num_workers": 1,
        "reward.num_workers": 1,
        "data.dataloader_num_workers": 0,
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
    }


def _critic_on_cpu() -> dict[str, Any]:
    """What a critic needs on our platform for CPUs, beside what the policy needs."""
    return {
        "critic.model.use_remove_padding": False,
        "+critic.model.override_config.attn_implementation": "sdpa",
        "critic.fsdp.use_torch_compile": False,
        "+critic.fsdp.mixed_precision": _FLOAT32,
    }
