"""Training a chat model on a file of word problems, as a user would. The model is tiny and random."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rollout.conftest import CHATML, make_model, make_tokenizer

from ctpo.cli.main import main
from ctpo.errors import UserError
from ctpo.training.run.train import train


@pytest.fixture(scope="module")
def chat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, tokenizer = tmp_path_factory.mktemp("chat"), make_tokenizer()
    make_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert "im_start" in CHATML
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for split, count in (("train", 12), ("test", 4)):
        rows = [
            {"text": f"What is {i} + {i}?", "solution": f"It is {i}+{i}.\n#### {2 * i}"} for i in range(count)
        ]
        if split == "train":
            rows += [
                {"text": "long " * 200, "solution": "#### 1"},
                {"text": "longer " * 20, "solution": "#### 1"},
            ]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def recipe(small_recipe: Any, chat_folder: Path, data: Path, **changes: Any) -> dict[str, Any]:
    keys = small_recipe(data / "run", task=f"gsm8k@{data}", model=str(chat_folder), **changes)
    ours = {"columns": {"prompt": "text", "answer": "solution"}, "eval_problems": 4, "train_problems": 100}
    short = {"generation_batch_size": 8, "per_device_train_batch_size": 4, "max_completion_length": 24}
    return {**keys, **ours, **short, **changes}


def test_it_trains_and_records_the_verdicts_of_the_judge(
    small_recipe: Any, chat_folder: Path, data: Path
) -> None:
    outcome = train(recipe(small_recipe, chat_folder, data, mask_void_turns="turn"))
    record = outcome.run.records()[-1]
    assert record["judged_no_answer"] == 8
    assert record["masked_void"] == 1
    assert outcome.summary is not None
    assert outcome.summary["prompts_left_out"] == 1  # 1,000 bytes do not fit 512 tokens


def test_prompts_are_left_out_by_their_tokens(small_recipe: Any, chat_folder: Path, data: Path) -> None:
    plain = len("What is 11 + 11?") + 240  # bytes are tokens here; the system prompt takes most
    outcome = train(recipe(small_recipe, chat_folder, data, max_prompt_length=plain + 60, rollout_batches=1))
    assert outcome.summary is not None
    assert outcome.summary["prompts_left_out"] == 2
    with pytest.raises(UserError, match="all 14 training prompts have more tokens than max_prompt_length=20"):
        train(recipe(small_recipe, chat_folder, data, max_prompt_length=20, output_dir=str(data / "other")))


def test_conversations_train_and_are_evaluated(small_recipe: Any, chat_folder: Path, tmp_path: Path) -> None:
    """Rows of verl, read as the task's own data: their system message stays, and the answer is what follows ####."""
    rows = [
        {
            "data_source": "sums",
            "prompt": [{"role": "system", "content": "Count."}, {"role": "user", "content": f"{i}+{i}?"}],
            "reward_model": {"style": "rule", "ground_truth": f"{i}+{i}\n#### {2 * i}"},
            "extra_info": {"index": i},
        }
        for i in range(9)
    ]
    huge = {"prompt": "0+0? " * 500_000, "answer": "#### 0"}  # refused without being tokenised
    for name, some in (
        ("train", [*rows, huge]),
        ("test", [{"prompt": "8 + 8?", "answer": "#### 16"}, *rows[7:], huge]),
    ):
        (tmp_path / f"{name}.json").write_text(json.dumps(some))
    files = {"dataset": tmp_path / "train.json", "eval_dataset": tmp_path / "test.json", "columns": None}
    outcome = train(
        recipe(small_recipe, chat_folder, tmp_path, **files, train_problems=None, rollout_batches=1)
    )
    assert outcome.summary is not None
    assert (outcome.summary["prompts_left_out"], outcome.summary["heldout_in_training"]) == (1, 2)
    transcripts = {row["prompt"][:30]: row for row in outcome.run.read_transcripts(0)}
    answers = {prompt: row["answer"] for prompt, row in transcripts.items()}
    assert answers == {
        "8 + 8?": "16",
        "system: Count.\n\nuser: 7+7?": "14",
        "system: Count.\n\nuser: 8+8?": "16",
        huge["prompt"][:30]: "0",
    }
    assert transcripts[huge["prompt"][:30]]["completion"] == ""


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["columns.prompt=body"], "has no column 'body' (it has: text, solution)"),
        (
            ["task=gsm8k?tool=native"],
            "tool=native: the model's chat template has no calls with tool messages",
        ),
        (["max_completion_length=512"], "which is the model's context of 512 less max_completion_length=512"),
        (["model=embedded"], "the model's tokenizer has no chat template"),
    ],
)
def test_mistakes_take_one_line_before_the_model_loads(
    chat_folder: Path, data: Path, capsys: pytest.CaptureFixture[str], words: list[str], part: str
) -> None:
    given = {
        "task": f"gsm8k@{data}",
        "model": str(chat_folder),
        "columns": {"prompt": "text", "answer": "solution"},
        "use_cpu": True,
        "output_dir": str(data / "run"),
        "generation_batch_size": 8,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 24,
        "rollout_batches": 1,
    }
    words = [word.replace("gsm8k?", f"gsm8k@{data}?") for word in words]
    (data / "r.yaml").write_text(json.dumps(given))
    assert main(["train", str(data / "r.yaml"), *words]) == 2
    printed = capsys.readouterr().err
    assert part in printed, printed
    assert printed.count("\n") == 1
    assert not (data / "run").exists()
