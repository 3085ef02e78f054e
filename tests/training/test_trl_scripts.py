"""Scripts as TRL's users write them, with two names changed: arguments, chats, rewards, tools, environments."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trl
from datasets import Dataset
from rollout.conftest import make_tokenizer
from transformers import AutoTokenizer
from trl import GRPOConfig, ModelConfig, ScriptArguments, TrlParser

from ctpo import CTPOConfig, CTPOTrainer
from ctpo.errors import UserError
from ctpo.tasks import CHAT_TOOL, FunctionTool
from ctpo.training.config.from_trl import LossSettingsNotice
from ctpo.training.config.older import OlderKeyWarning
from ctpo.training.sampling.prompts import LongPromptsWarning

SHORT = {
    "per_device_train_batch_size": 4,
    "num_generations": 4,
    "max_completion_length": 8,
    "logging_steps": 1,
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The directory of a tiny random model with the chat template of Qwen3."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("qwen3"), make_tokenizer()
    tokenizer.chat_template = (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text()
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def chats(count: int, *extra: str) -> Dataset:
    questions = [*(f"What is {i}+{i}?" for i in range(count)), *extra]
    return Dataset.from_list(
        [{"prompt": [{"role": "user", "content": text}], "answer": str(len(text))} for text in questions]
    )


def length_reward(completions: Any, **_: Any) -> list[float]:
    return [float(len(each[0]["content"])) for each in completions]


def some_reward(completions: Any, answer: Any, **_: Any) -> list[float | None]:
    """None where it does not apply, which is TRL's convention."""
    return [None if i % 2 else float(len(text)) for i, text in enumerate(answer)]


def test_a_script_with_a_command_line(model: str, tmp_path: Path) -> None:
    """The pattern of TRL's gspo.py: a parser of three classes, chats, rewards, an evaluation, a saved model."""
    words = (
        f"--model_name_or_path {model} --output_dir {tmp_path} --importance_sampling_level sequence --epsilon 3e-4 "
        "--epsilon_high 4e-4 --beta 0.0 --loss_type grpo --gradient_accumulation_steps 2 --steps_per_generation 4 "
        "--gradient_checkpointing --no_cuda --overwrite_output_dir --disable_tqdm True --save_strategy no "
        "--max_steps 3 --eval_strategy steps --eval_steps 2 --per_device_eval_batch_size 4 --warmup_ratio 0.5 "
        "--max_prompt_length 60 --report_to none"
    ).split() + [word for name, value in SHORT.items() for word in (f"--{name}", str(value))]
    parser = TrlParser((ScriptArguments, CTPOConfig, ModelConfig))
    with pytest.warns(LossSettingsNotice, match="objective='gspo'"), pytest.warns(OlderKeyWarning):
        _, config, arguments = parser.parse_args_and_config(words)
    assert (config.use_cpu, config.activation_checkpointing) == (True, True)
    with pytest.warns(LongPromptsWarning, match="1 of 9 training prompts"):
        trainer = CTPOTrainer(
            model=arguments.model_name_or_path,
            args=config,
            reward_funcs=[length_reward, some_reward],
            train_dataset=chats(8, "a long question " * 10),
            eval_dataset=chats(2),
        )
    assert len(trainer.train_dataset) == 8
    trainer.train()
    trainer.save_model(config.output_dir)
    assert trainer.objective == CTPOConfig(str(tmp_path), use_cpu=True, objective="gspo").build_objective()
    logged = {name for entry in trainer.state.log_history for name in entry}
    assert {f"rewards/{name}_reward/mean" for name in ("length", "some")} <= logged
    assert {"eval_reward", "clip_ratio/region_mean", "clip_ratio/high_max", "objective/ess"} <= logged
    assert (tmp_path / "model.safetensors").is_file()


def test_switches_of_a_command_line(tmp_path: Path) -> None:
    """A field that is True by default in TRL or transformers, now or in an older release, has a `--no_` switch."""
    parser = TrlParser((ScriptArguments, CTPOConfig, ModelConfig))
    theirs = TrlParser((ScriptArguments, GRPOConfig, ModelConfig))
    assert set(theirs._option_string_actions) <= set(parser._option_string_actions)
    common = ["--output_dir", str(tmp_path), "--use_cpu"]

    def parsed(*words: str) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OlderKeyWarning)
            return parser.parse_args_and_config([*common, *words])[1]

    assert parsed("--gradient_checkpointing").activation_checkpointing is True
    for words in (["--no_gradient_checkpointing"], ["--gradient-checkpointing", "False"]):
        assert parsed("--gradient_checkpointing", *words).activation_checkpointing is False
    scales = {"--no_scale_rewards": "none", "--scale_rewards": "group", "--scale-rewards=False": "none"}
    assert {word: parsed(word).scale_rewards for word in scales} == scales
    assert parsed("--scale_rewards", "batch").scale_rewards == "batch"
    with pytest.raises(SystemExit):
        parsed("--no_scale_rewards", "batch")
    with pytest.raises(ValueError, match="scale_rewards='some' is not one of group, batch, none"):
        parsed("--scale_rewards", "some")
    with pytest.warns(OlderKeyWarning, match="save_safetensors=False has no effect"):
        parser.parse_args_and_config([*common, "--no-save-safetensors"])
    file = tmp_path / "train.yaml"
    file.write_text("gradient_checkpointing: true\nscale_rewards: false\n")
    for words, kept in ((["--no-gradient-checkpointing"], False), ([], True)):
        config = parsed("--config", str(file), *words)
        assert (config.activation_checkpointing, config.scale_rewards) == (kept, "none")


def test_our_tools_count_in_the_length_of_a_prompt(model: str, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = chats(4)
    bare, declared = (
        len(
            tokenizer.apply_chat_template(rows[0]["prompt"], tools=tools, add_generation_prompt=True)[
                "input_ids"
            ]
        )
        for tools in (None, [add])
    )
    assert declared > bare + 100

    def kept(limit: int, *, anchor: str = "old", **tools: Any) -> int:
        config = CTPOConfig(
            str(tmp_path), use_cpu=True, report_to="none", anchor=anchor, max_prompt_length=limit, **SHORT
        )
        return len(CTPOTrainer(model, length_reward, config, rows, **tools).train_dataset)

    assert kept(declared, tools=[FunctionTool(add)]) == 4
    with pytest.raises(ValueError, match=f"all 4 training prompts .* max_prompt_length={declared - 1}"):
        kept(declared - 1, tools=[FunctionTool(add)])
    assert kept(declared, tools=[add]) == kept(bare, anchor="rollout") == 4
    for limit, others in ((declared - 1, {"tools": [add]}), (bare - 1, {"anchor": "rollout"})):
        with pytest.raises(ValueError, match="all 4 training prompts"):
            kept(limit, **others)


def test_arguments_that_would_train_nothing(model: str, tmp_path: Path) -> None:
    """TRL takes no step where the data does not fill one rollout batch, and only logs it."""
    config = CTPOConfig(str(tmp_path), use_cpu=True, report_to="none", steps_per_generation=4, **SHORT)
    trainer = CTPOTrainer(model, length_reward, config, chats(3))
    with pytest.raises(UserError, match="3 training problems do not fill one rollout batch of 4 prompts"):
        trainer.train()
    with pytest.raises(ValueError, match=r"tools=.* is no list; write tools=\[...\]"):
        CTPOTrainer(model, length_reward, config, chats(4), tools=CHAT_TOOL)
    with pytest.raises(ValueError, match=r"task=7 is no ctpo\.tasks\.Task"):
        CTPOTrainer(model, length_reward, config, task=7)


def add(a: int, b: int) -> int:
    """
    Adds two numbers.

    Args:
        a: The first number.
        b: The second number.
    """
    return a + b


class Echo:
    """An environment as TRL's users write one: public methods are tools."""

    def reset(self, **_: Any) -> None:
        self.heard = 0.0

    def echo(self, message: str) -> str:
        """
        Echoes a message.

        Args:
            message: The message.
        """
        self.heard += len(message)
        return message


@pytest.mark.parametrize(
    ("other", "reward"),
    [
        ({"tools": [add]}, length_reward),
        ({"environment_factory": Echo}, lambda environments, **_: [each.heard for each in environments]),
    ],
    ids=["tools", "environment"],
)
def test_a_script_with_tools_or_an_environment(
    model: str, tmp_path: Path, other: dict[str, Any], reward: Callable[..., Any]
) -> None:
    """The patterns of TRL's grpo_agent.py and openenv/echo.py, on TRL's own generation."""
    settings = {
        **SHORT,
        "chat_template_kwargs": {"enable_thinking": False},
        "max_steps": 1,
        "report_to": "none",
    }
    config = CTPOConfig(str(tmp_path), use_cpu=True, save_strategy="no", disable_tqdm=True, **settings)
    trainer = CTPOTrainer(model=model, reward_funcs=reward, args=config, train_dataset=chats(4), **other)
    trainer.train()
    entry = trainer.state.log_history[0]
    assert entry["tools/call_frequency"] == 0.0  # a random model writes no call
    assert entry["reward"] is not None
