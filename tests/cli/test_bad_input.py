"""Every mistake gets one line on standard error and exit code 2, and nothing is made or lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ctpo.cli.main import main
from ctpo.cli.quiet import sole_use


def complaint(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    assert main(argv) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("ctpo: ")
    return captured.err


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["lerning_rate=1e-4"], ["unknown key 'lerning_rate'", "did you mean 'learning_rate'?"]),
        (["zzz=1"], ["unknown key 'zzz'", "ctpo train --help"]),
        (["learning_rate=fast"], ["learning_rate='fast' is not of type float"]),
        (["seed=1.5"], ["seed=1.5 is not of type int"]),
        (["seed=[1]"], ["seed=[1] is not of type int"]),
        (["objective=ctpoo"], ["ctpoo", "'ctpo'"]),
        (["objective_kwargs.hihg=1"], ["hihg", "log_high"]),
        (["objective_kwargs.log_low=-1"], ["log_low", "-1"]),
        (["objective_kwargs=5"], ["objective_kwargs=5 is not of type"]),
        (["loss_type=cispo"], ["loss_type='cispo' of TRL", "set epsilon_high=5.0"]),
        (["task=sudoku"], ["task 'sudoku' is unknown", "arithmetic"]),
        (["model=./nowhere"], ["model=./nowhere does not exist"]),
        (["model=."], ["model=. is not a model directory", "config.json"]),
        (["max_steps=16", "rollout_batches=1"], ["rollout_batches=1", "max_steps=16", "drop one"]),
        (["max_steps=16", "num_train_epochs=2"], ["num_train_epochs=2", "max_steps=16", "drop one"]),
        (["dataset=d.jsonl", "train_problems=9"], ["dataset=d.jsonl", "train_problems=9", "drop one"]),
        (["rollout_batches=0"], ["rollout_batches=0 is too small"]),
        (
            ["max_steps=17"],
            ["max_steps=17 is not a whole number of rollout batches", "use 16"],
        ),
        (
            ["steps_per_generation=2", "generation_batch_size=64"],
            ["generation_batch_size=64", "steps_per_generation=2", "drop one"],
        ),
        (
            ["gradient_accumulation_steps=3"],
            ["gradient_accumulation_steps=3", "use gradient_accumulation_steps=2"],
        ),
        (["gradient_accumulation_steps=0"], ["gradient_accumulation_steps=0 is out of range"]),
        (["per_device_train_batch_size=0"], ["per_device_train_batch_size=0 is out of range"]),
        (["learning_rate=nan"], ["learning_rate=nan is out of range"]),
        (["learning_rate=1e3"], ["learning_rate=1000.0 is out of range"]),
        (["temperature=0"], ["temperature=0", "out of range; use more than 0"]),
        (["top_p=2"], ["top_p=2", "out of range"]),
        (["top_k=-4"], ["top_k=-4 is out of range"]),
        (["seed=-1"], ["seed=-1 is out of range"]),
        (["seed=true"], ["seed=True is not of type int"]),
        (["max_completion_length=null"], ["max_completion_length=None is out of range"]),
        (["use_vllm=true", "rollout_batch_size=4"], ["rollout_batch_size=4 has no effect with use_vllm"]),
        (["overlong_buffer=97"], ["overlong_buffer=97 exceeds max_completion_length=96"]),
        (["anchor=old", "rollout_correction_kwargs.cap=2"], ["rollout_correction_kwargs has no effect"]),
        (["overlong_buffer=20", "advantages=maxrl"], ["overlong_buffer=20 makes rewards negative"]),
        (["max_prompt_length=0"], ["max_prompt_length=0 is too small"]),
        (["max_prompt_length=5"], ["all 2048 training prompts have more tokens than max_prompt_length=5"]),
        (["mask_void_turns=all"], ["mask_void_turns='all'", "'none', 'response' or 'turn'"]),
        (["columns.question=q"], ["columns.question=q is unknown; use names of prompt, answer, id"]),
        (["columns.prompt=q"], ["task 'arithmetic' makes its problems itself; give dataset=FILE"]),
        (["max_completion_length=300"], ["the model's context of 256 less max_completion_length=300"]),
        (["min_p=0.1"], ["min_p=0.1 cannot be set"]),
        (["eval_on_start=true"], ["eval_on_start=True cannot be set"]),
        (["tool_timeout_s=nan"], ["tool_timeout_s=nan is out of range"]),
        (["tool_timeout_s=1e300"], ["tool_timeout_s=1e+300 is out of range"]),
        (["model=2020-13-45"], ["model=2020-13-45 does not exist"]),
        (["output_dir=" + "x" * 300], ["cannot be used (File name too long)"]),
        (["num_generations=7"], ["512", "7"]),
        (["logging_steps=1"], ["logging_steps=1 cannot be set"]),
        (["tool_timeout_s=-1"], ["tool_timeout_s=-1"]),
        (["eval_problems=-5"], ["eval_problems=-5 is too small"]),
        (["oops"], ["recipe oops does not exist"]),
        (["a.yaml", "b.yaml"], ["2 recipes are given (a.yaml b.yaml)"]),
        (["=3"], ["'=3' is not key=value"]),
        (["--resume", "nowhere"], ["nowhere is not a run"]),
        (["--resume", "nowhere", "a.yaml"], ["recipe a.yaml and --resume nowhere"]),
        (["dataset=missing.jsonl"], ["dataset missing.jsonl does not exist"]),
        (["--nonsense"], ["--nonsense"]),
    ],
)
def test_train(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: list[str], parts: list[str]
) -> None:
    message = complaint(capsys, "train", *words)
    assert all(part in message for part in parts), message
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ("", ["recipe r.yaml holds NoneType, not a mapping"]),
        ("- a\n- b\n", ["recipe r.yaml holds list"]),
        ("a: [1", ["recipe r.yaml is not YAML"]),
        ("task: arithmetic\nepochs: 3\n", ["unknown key 'epochs'"]),
    ],
)
def test_recipe_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str, parts: list[str]
) -> None:
    (tmp_path / "r.yaml").write_text(content)
    message = complaint(capsys, "train", "r.yaml")
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        (None, ["dataset d.jsonl does not exist"]),
        ("", ["dataset d.jsonl is empty"]),
        (
            '{"frage": "1+1", "answer": 2}\n',
            ["line 1 has no column 'prompt' or another", "(it has: frage, answer)"],
        ),
        ('{"prompt": "1+1="}\n', ["line 1 has no column 'answer'"]),
        ('{"prompt": "1+1=", "answer": "2"}\n{"prompt": " ", "answer": "3"}\n', ["line 2: prompt is ' '"]),
        ('{"prompt": "1+1=", "answer": null}\n', ["line 1: answer is None"]),
        ('{"prompt": "1+1=", "answer": 2}\n{oops\n', ["line 2 is not JSON", "'{oops'"]),
        ("[1, 2]\n", ["row 1 is int, not an object"]),
        ("\n", ["dataset d.jsonl is empty"]),
        (
            '{"prompt": "1+1=", "answer": 2}\n',
            ["1 training problems do not fill one rollout batch of 64 prompts"],
        ),
    ],
)
def test_dataset(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str | None, parts: list[str]
) -> None:
    if content is not None:
        (tmp_path / "d.jsonl").write_text(content)
    (tmp_path / "r.yaml").write_text(
        "dataset: d.jsonl\ngeneration_batch_size: 512\nper_device_train_batch_size: 32\nuse_cpu: true\n"
        "num_generations: 8\nrollout_batches: 1\noutput_dir: out\n"
    )
    message = complaint(capsys, "train", "r.yaml")
    assert all(part in message for part in parts), message
    assert not (tmp_path / "out").exists()


def test_output_directory_with_a_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("task: arithmetic\n")
    assert "already holds a run" in complaint(capsys, "train", f"output_dir={tmp_path}")


def test_output_directory_that_is_a_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    assert "taken is a file" in complaint(capsys, "train", "output_dir=taken")


@pytest.mark.parametrize(
    "words", [("eval", "embedded"), ("compare", "plan.yaml")], ids=["evaluation", "comparison"]
)
def test_an_output_that_another_command_writes_to(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, words: tuple[str, str]
) -> None:
    (tmp_path / "plan.yaml").write_text("objectives: {ctpo: {}}\nseeds: {test: [0]}\n")
    with sole_use(tmp_path / "out"):
        assert "--output out is in use by another command" in complaint(capsys, *words, "--output", "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".lock"]
    with sole_use(tmp_path / "out"):  # given back
        pass


def test_damaged_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("task: arithmetic\n")
    assert "neither a trained model nor a checkpoint" in complaint(capsys, "eval", str(tmp_path))
    (tmp_path / "config.yaml").write_text("a: [")
    assert "is damaged" in complaint(capsys, "train", "--resume", str(tmp_path))
    (tmp_path / "config.yaml").write_text("[]")
    assert "is damaged" in complaint(capsys, "train", "--resume", str(tmp_path))


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["nowhere/at/all"], ["model=nowhere/at/all does not exist"]),
        (["embedded", "--task", "sudoku"], ["sudoku"]),
        (["embedded", "--limit", "0"], ["--limit 0 is too small"]),
        (["embedded", "--temperature", "-1"], ["--temperature -1.0 is out of range"]),
        (["embedded", "--max-tokens", "100000"], ["exceeds the model's context of 256"]),
        (["embedded", "--output", "/proc/nope"], ["--output /proc/nope cannot be made"]),
        (["embedded", "--temperature", "nan"], ["--temperature nan is out of range"]),
        (["embedded", "--samples", "0"], ["--samples 0 is too small"]),
        (["embedded", "--top-p", "0"], ["--top-p 0.0 is not a share"]),
        (["embedded", "--task", "arithmetic", "--task", "arithmetic"], ["--task arithmetic is given twice"]),
        (["embedded", "--task", "gsm8k@nowhere.jsonl"], ["nowhere.jsonl does not exist"]),
        (["embedded", "--task", "gsm8k"], ["openai/gsm8k cannot be loaded from the hub"]),
        ([], ["MODEL"]),
    ],
)
def test_eval(capsys: pytest.CaptureFixture[str], words: list[str], parts: list[str]) -> None:
    message = complaint(capsys, "eval", *words)
    assert all(part in message for part in parts), message


def test_model_directory_without_weights(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    assert "cannot be loaded" in complaint(capsys, "eval", "model")


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert "fly" in complaint(capsys, "fly")
