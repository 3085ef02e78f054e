"""Worked solutions become responses as rollouts have them, and a tiny chat model learns to write them."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from rollout.conftest import CHATML, NATIVE, make_model, make_tokenizer

from ctpo.cli.main import main
from ctpo.errors import UserError
from ctpo.report.collection import collect
from ctpo.report.page import figures, notes
from ctpo.report.tables.headline import cards
from ctpo.rollout.chat import encode_prompt, task_format
from ctpo.rollout.tools import ToolRunner
from ctpo.rollout.turns import Turn
from ctpo.tasks import CHAT_TOOL, PythonTool, get_task
from ctpo.tasks.chain_sums import TOOL
from ctpo.tasks.task import with_template_kwargs
from ctpo.training.config.warm_up import WarmUpRecipe, build
from ctpo.training.warm_up.demonstrations import Demonstrator
from ctpo.training.warm_up.rows import DISAGREES, NO_ANSWER, NO_PROGRAM, REPEATED, UNUSABLE, make_rows
from ctpo.training.warm_up.run import preview, warm_up
from ctpo.training.warm_up.solutions import steps_of
from ctpo.training.warm_up.trainer import WarmUpTrainer, collate

GOOD = [
    {
        "question": f"Ann has {n} pens and buys twice as many. How many does she have?",
        "answer": f"Ann buys {n}*2 = <<{n}*2={2 * n}>>{2 * n} pens.\n"
        f"In total Ann has {n} + {2 * n} = <<{n}+{2 * n}={3 * n}>>{3 * n} pens.\n#### {3 * n}",
    }
    for n in range(3, 15)
]
BAD = {
    UNUSABLE: {"question": "What is missing?", "answer": ""},
    NO_ANSWER: {"question": "What is 3+4?", "solution": "That makes <<3+4=7>>7 of them."},
    REPEATED: GOOD[0],
    DISAGREES: {"question": "2+2?", "solution": "It is <<2+2=4>>4.\n#### 4", "answer": "5"},
    NO_PROGRAM: {"question": "Who knows?", "answer": "One knows that it is 4.\n#### 4"},
    "its program gives another answer": {
        "question": "Ann has 2 pens and 3 cups, one of them blue?",
        "answer": "She has 2+3 = <<2+3=5>>5 things.\nOne is left out, so 5 - 1 = 4.\n#### 4",
    },
    "its program fails": {"question": "What is 1/0?", "answer": "It is 1/0 = <<1/0=0>>0.\n#### 0"},
    "it is too long": {"question": "long " * 300, "answer": "So <<1+1=2>>2.\n#### 2"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random chat model, and the solutions."""
    import torch

    torch.set_num_threads(1)
    folder, tokenizer = tmp_path_factory.mktemp("warm-up"), make_tokenizer()
    model = make_model(tokenizer, num_hidden_layers=2, max_position_embeddings=1024)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [*GOOD, *BAD.values()]))
    return folder


@pytest.fixture
def keys(folder: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "task": f"gsm8k@{folder}",
        "model": str(folder / "model"),
        "output_dir": str(tmp_path / "run"),
        "heldout_rows": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "num_train_epochs": 2,
        "eval_every": 3,
        "save_steps": 2,
        "threads": 1,
        "use_cpu": True,
        "seed": 1,
    }


def words(keys: dict[str, Any]) -> list[str]:
    return ["warm-up", *(f"{name}={value}" for name, value in keys.items())]


def rows_of(folder: Path, sandbox: Any, template: str = CHATML, tool: PythonTool = CHAT_TOOL) -> Any:
    task = replace(get_task(f"gsm8k@{folder}"), tool=tool)
    tokenizer = make_tokenizer(template)
    runner = ToolRunner(task.all_tools, sandbox)
    demonstrator = Demonstrator(tokenizer, task, tool, runner, "#### {answer}", 1024)
    rows, _ = make_rows(WarmUpRecipe(task=f"gsm8k@{folder}", model="embedded"), task, demonstrator)
    return task, tokenizer, rows


def test_annotated_solutions_become_one_program() -> None:
    problem = "Mia has 3 boxes of 1,200 pens and gives 25% away. She shares the rest with 2 friends."
    solution = (
        "First she counts.\nMia has 3 boxes x 1,200 pens/box = <<3*1200=3600>>3,600 pens.\n"
        "She gives away 3600*25% = <<3600*25%=900>>900 pens, so 3600-900 = <<2700=2700>>2700 pens remain.\n"
        "Each of the 3 gets $2700/3 = <<2700/3=900>>900 of 2700.\nThat is all: 900.\n#### 900"
    )
    (step,) = steps_of(solution, problem)
    assert step.text == ""
    assert step.program == (
        "# First she counts. Mia has pens.\nmia_pens = 3 * 1200\n"
        "# She gives away pens, so pens remain.\ngives_pens = mia_pens * 0.25\n"
        "remain_pens = mia_pens - gives_pens\n"
        "# Each of the 3 gets of remain_pens.\ngets = remain_pens / 3\nprint(round(gets, 2))"
    )


def test_programs_of_a_solution_are_kept_and_its_outputs_are_not() -> None:
    solution = (
        "Add them.\n```python\nprint(2+2)\n```\n```output\n5\n```\n"
        "Then double.\n```python\nprint(4*2)\n```\n\\boxed{9}"
    )
    assert [(step.text, step.program) for step in steps_of(solution)] == [
        ("Add them.", "print(2+2)"),
        ("Then double.", "print(4*2)"),
    ]


@pytest.mark.parametrize(
    "solution",
    ["", "plain words", "<<__import__('os')=1>>", "<<9**9**9=1>>", "x is <<5=5>>5", "```python\nprint("],
)
def test_what_is_no_arithmetic_gives_no_program(solution: str) -> None:
    assert steps_of(solution) == []


def test_a_value_that_no_decimal_number_holds_is_none() -> None:
    (step,) = steps_of("He has <<2*3=1e9999999>>6 clips.")
    assert step.program == "# He has clips.\nclips = 2 * 3\nprint(round(clips, 2))"


def test_a_hostile_solution_is_read_in_linear_time() -> None:
    for text in (
        "<<1+" * 50_000,
        "1+" * 9_000 + "a <<1+1=2>>",
        "1+" * 9_000 + "a <<2=2>>",
        "<<1+1=2>>" * 2_000,
        "$" * 100_000 + "<<1+1=2>>2",
        "```python\n" * 20_000,
    ):
        steps_of(text)


FORMS = {"tags": (CHATML, TOOL), "fenced": (CHATML, CHAT_TOOL), "native": (NATIVE, CHAT_TOOL)}


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_what_rollouts_read(folder: Path, sandbox: Any, form: str) -> None:
    """Each row is read back token by token: the call completes where the tool's output begins, and not before."""
    task, tokenizer, rows = rows_of(folder, sandbox, *FORMS[form])
    assert len(rows.kept) == len(GOOD)
    assert rows.dropped == dict.fromkeys(BAD, 1)
    read = task_format(tokenizer, task)
    assert read is not None
    assert read.style == form
    for row, source in zip(rows.kept[:2], GOOD, strict=False):
        assert row["prompt_ids"] == encode_prompt(tokenizer, task, source["question"])
        ids, mask = row["completion_ids"], row["response_mask"]
        begins = mask.index(0)
        ends = begins + mask[begins:].index(1)
        assert all(mask[:begins])
        assert not any(mask[begins:ends])
        assert all(mask[ends:])
        answer = source["answer"].rpartition(" ")[2]
        assert answer in tokenizer.decode(ids[begins:ends])
        assert tokenizer.decode(ids[ends:]) == f"#### {answer}<|im_end|>"
        native = form == "native"
        assert (ids[begins - 1] == tokenizer.eos_token_id) == native
        for end in range(1, begins + 1):
            text = tokenizer.decode(ids[:end], skip_special_tokens=False)
            calls = read.calls(text, ended=native and end == begins)
            assert bool(calls) == (end == begins), text
        runner = ToolRunner(task.all_tools, sandbox)
        runner.begin(tokenizer, [row["prompt_ids"]])
        (said,) = runner.answer([Turn(response=0, ids=ids[:begins], ended=native)])
        assert said is not None
        assert said.ids == ids[begins:ends]
        assert task.check is not None
        assert task.check(tokenizer.decode(ids, skip_special_tokens=True), answer)


def test_loss_and_gradient_are_those_of_the_model_itself(
    folder: Path, sandbox: Any, keys: dict[str, Any]
) -> None:
    """Packed in parts of 200 tokens, against transformers' own loss of each row alone."""
    import torch

    from ctpo.evaluation.model import load_model

    _, _, rows = rows_of(folder, sandbox)
    recipe, config = build({**keys, "max_tokens_per_micro_batch": 200, "compute_dtype": "float32"})
    model, tokenizer = load_model(str(folder / "model"))
    trainer = WarmUpTrainer(model, config, rows.kept, recipe, processing_class=tokenizer)
    some = rows.kept[:5]
    wanted = sum(sum(row["response_mask"]) for row in some)
    total = torch.zeros(())
    for row in some:
        ids = torch.tensor([[*row["prompt_ids"], *row["completion_ids"]]])
        ignored = [-100] * len(row["prompt_ids"])
        labels = [t if m else -100 for t, m in zip(row["completion_ids"], row["response_mask"], strict=True)]
        count = sum(row["response_mask"])
        total = total + model(input_ids=ids, labels=torch.tensor([[*ignored, *labels]])).loss * count / wanted
    total.backward()
    expected = {name: weight.grad.clone() for name, weight in model.named_parameters()}
    model.zero_grad()
    model.train()
    inputs = collate(some, tokenizer.pad_token_id)
    loss = trainer.compute_loss(model, inputs, num_items_in_batch=(inputs["labels"] != -100).sum())
    loss.backward()
    assert loss.item() == pytest.approx(total.item(), rel=1e-5)
    assert trainer.mean_loss(some) == pytest.approx(total.item(), rel=1e-5)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, expected[name], rtol=1e-4, atol=1e-6)
    assert trainer.tokens == sum(len(row["prompt_ids"]) + len(row["completion_ids"]) for row in some)


def test_products_in_bfloat16_round_the_loss_and_keep_float32_gradients(
    folder: Path, sandbox: Any, keys: dict[str, Any]
) -> None:
    import torch

    from ctpo.evaluation.model import load_model

    _, _, rows = rows_of(folder, sandbox)
    losses, gradients = [], []
    for dtype in ("float32", "bfloat16"):
        recipe, config = build({**keys, "compute_dtype": dtype})
        model, tokenizer = load_model(str(folder / "model"))
        trainer = WarmUpTrainer(model, config, rows.kept, recipe, processing_class=tokenizer)
        inputs = collate(rows.kept[:5], tokenizer.pad_token_id)
        loss = trainer.compute_loss(
            model.train(), inputs, num_items_in_batch=(inputs["labels"] != -100).sum()
        )
        loss.backward()
        assert loss.item() == pytest.approx(trainer.mean_loss(rows.kept[:5]), rel=1e-4)
        losses.append(loss.item())
        weights = [weight.grad for weight in model.parameters()]
        assert all(gradient.dtype == torch.float32 for gradient in weights)
        gradients.append(torch.cat([gradient.flatten() for gradient in weights]))
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)  # bfloat16 has 8 bits: a rounding is up to 4e-3
    assert 0.99 < torch.cosine_similarity(*gradients, dim=0) < 0.999999


def test_a_run_learns_and_resumes_to_the_same_bits(
    keys: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    whole = Path(keys["output_dir"])
    assert main(words(keys)) == 0
    printed = capsys.readouterr().out
    assert "12 rows" in printed
    assert "1 left out: its program fails (first: row 19)" in printed
    records = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [0, 1, 2, 3, 4, 5, 6]
    assert [record["step"] for record in records if "heldout_loss" in record] == [0, 3, 6]
    summary = json.loads((whole / "summary.json").read_text())
    assert (summary["rows"], summary["rows_heldout"], sum(summary["dropped"].values())) == (12, 1, len(BAD))
    assert summary["after"]["loss"] < summary["before"]["loss"]
    part = whole.with_name("part")
    shutil.copytree(whole, part)
    (part / "summary.json").unlink()
    for option in ("--show", "--check"):  # what the run's own directory says
        assert main(["warm-up", "--resume", str(part), option]) == 0
    assert main(["warm-up", "--resume", str(part), "--show", "max_length=100"]) == 2
    assert f"task: {keys['task']}" in (printed := capsys.readouterr().out)
    assert "12 rows" in printed
    for name in ("checkpoint-4", "checkpoint-6", "model"):
        shutil.rmtree(part / name)
    with ThreadPoolExecutor() as threads:  # outside of the main thread, as a notebook does
        assert threads.submit(main, ["warm-up", "--resume", str(part)]).result() == 0
    weights = [run / "model" / "model.safetensors" for run in (whole, part)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    timed = {"seconds", "cpu_s"}
    again = [json.loads(line) for line in (part / "metrics.jsonl").read_text().splitlines()]
    assert [{k: v for k, v in row.items() if k not in timed} for row in again] == [
        {k: v for k, v in row.items() if k not in timed} for row in records
    ]
    for name in ("summary.json", "metrics.jsonl"):  # killed before the first checkpoint
        (part / name).unlink()
    for checkpoint in part.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    (part / "metrics.jsonl").write_text(json.dumps({**records[0], "seconds": "y"}) + "\n")
    assert main(["warm-up", "--resume", str(part)]) == 2
    assert "is damaged (seconds of step 0 is 'y')" in capsys.readouterr().err
    (part / "metrics.jsonl").write_text(json.dumps(records[0]) + "\n")
    assert main(["warm-up", "--resume", str(part)]) == 0
    assert "has no checkpoint yet; starting again from the beginning" in capsys.readouterr().out
    assert weights[0].read_bytes() == weights[1].read_bytes()
    for words_, error in (
        (["warm-up", "--resume", str(whole)], "is complete; start a new warm-up with model="),
        (
            ["train", "--resume", str(whole)],
            "belongs to `ctpo warm-up`; give it to that, not to `ctpo train`",
        ),
        (
            words(keys),
            f"already holds a run; choose another, or continue it with `ctpo warm-up --resume {whole}`",
        ),
    ):
        assert main(words_) == 2
        assert error in capsys.readouterr().err
    collection = collect([whole])
    drawn = {figure.id: figure.series[0] for figure in figures(collection)}
    assert set(drawn) == {"loss", "heldout-loss"}
    assert drawn["loss"].y == [record["loss"] for record in records if "loss" in record]
    assert (list(drawn["heldout-loss"].x), drawn["heldout-loss"].y[-1]) == (
        [0, 3, 6],
        summary["after"]["loss"],
    )
    assert [card.value for card in cards(collection)][:2] == ["warm-up", f"{summary['after']['loss']:.2f}"]
    assert not notes(collection)
    from ctpo.training.config.settings import check

    assert check({"model": str(whole / "model")})[0].model == str(whole / "model")


def test_an_adapter_is_trained_and_merged(keys: dict[str, Any]) -> None:
    pytest.importorskip("peft")
    from ctpo.evaluation.model import load_model

    path = Path(keys["output_dir"])
    assert (
        main(words({**keys, "use_peft": True, "lora_r": 2, "max_steps": 1, "compute_dtype": "float32"})) == 0
    )
    merged, adapted = (load_model(str(path / name))[0] for name in ("model", "adapter"))
    before = load_model(keys["model"])[0].state_dict()
    after = merged.state_dict()
    assert any(not before[name].equal(after[name]) for name in before)
    assert all(after[name].allclose(weight, atol=1e-6) for name, weight in adapted.state_dict().items())


class Interrupts:
    """A listener that presses Ctrl-C once a number of steps is done: the next step is the last."""

    def __init__(self, step: int) -> None:
        self.step = step

    def stage(self, what: str) -> None: ...

    def notice(self, what: str) -> None: ...

    def prepared(self, kept: int, dropped: Any, first: Any) -> None: ...

    def started(self, output: Path, steps: int, done: int, parameters: int) -> None: ...

    def recorded(self, record: Mapping[str, Any]) -> None:
        if record["step"] == self.step:
            os.kill(os.getpid(), signal.SIGINT)


def test_an_interrupted_adapter_goes_on_to_the_same_bits(keys: dict[str, Any]) -> None:
    pytest.importorskip("peft")
    adapted = {**keys, "use_peft": True, "lora_r": 2, "lora_dropout": 0.1}
    whole, part = Path(keys["output_dir"]), Path(keys["output_dir"]).with_name("part")
    assert warm_up(adapted, listener=Interrupts(step=-1)).finished
    assert not warm_up({**adapted, "output_dir": str(part)}, listener=Interrupts(step=2)).finished
    assert {path.name for path in part.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-3"}
    assert not (part / "model").exists()
    assert warm_up({}, listener=Interrupts(step=-1), resume=part).finished
    for name in ("model/model.safetensors", "adapter/adapter_model.safetensors"):
        assert (whole / name).read_bytes() == (part / name).read_bytes()


@pytest.mark.parametrize(
    ("rows", "changes", "error"),
    [
        ([], {}, "is left to train on (it has no rows); give others"),
        ([BAD[NO_PROGRAM]], {}, f"(1 {NO_PROGRAM}, first row 1)"),
        (GOOD[:1], {"max_length": 20}, "(1 it is too long, first row 1)"),
        ([BAD[NO_ANSWER]], {}, f"(1 {NO_ANSWER}, first row 1)"),
        ([{"question": "2+2?", "solution": None, "answer": "4"}], {}, f"(1 {UNUSABLE}, first "),
        (
            [{"question": "2+2?", "Worked Solution": "It is 4.", "Answer": "4"}],
            {},
            f"(1 {NO_PROGRAM}, first row 1)",
        ),
        (GOOD[:1], {"columns": "{solution: worked}"}, "has no column 'worked'"),
        (GOOD[:1], {"columns": '{solution: ""}'}, "columns.solution is empty; give the name of a column"),
        (GOOD[:1], {"threads": 10**13}, "threads=10000000000000 is too large; use at most 4096"),
        (GOOD[:1], {"max_steps": 0}, "max_steps=0 is out of range; use 1 or more"),
        (GOOD[:1], {"num_train_epochs": 1e300}, "num_train_epochs=1e+300 is out of range"),
        (GOOD[:1], {"output_dir": "/proc/run"}, "output_dir=/proc/run cannot be used ("),
        (GOOD[:1], {"adam_beta1": 2}, "adam_beta1=2 is out of range; use 0 or more and less than 1"),
        (GOOD[:1], {"max_grad_norm": -1}, "max_grad_norm=-1 is out of range; use 0 or more"),
        (GOOD[:1], {"save_steps": -1}, "save_steps=-1 is out of range; use more than 0"),
        (GOOD[:1], {"answer_line": "none"}, "answer_line='none' must hold {answer} once"),
        (GOOD[:1], {"packing": "true"}, "unknown key 'packing'"),
        (GOOD[:1], {"task": "gsm8k?tool=none"}, "has no Python tool"),
    ],
)
def test_bad_input_is_named_in_one_line(
    keys: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    rows: list[dict[str, Any]],
    changes: dict[str, Any],
    error: str,
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(words({**keys, "dataset": path, **changes})) == 2
    printed = capsys.readouterr().err
    assert error in printed
    assert printed.count("\n") == 1
    assert not Path(keys["output_dir"]).exists()


def test_rows_stop_at_the_number_that_is_wanted(folder: Path, sandbox: Any) -> None:
    """What comes after them is not counted, whatever its reason."""
    task, tokenizer, _ = rows_of(folder, sandbox)
    demonstrator = Demonstrator(
        tokenizer, task, task.tool, ToolRunner(task.all_tools, sandbox), "#### {answer}", 1024
    )
    rows, _ = make_rows(WarmUpRecipe(task=f"gsm8k@{folder}", train_rows=5), task, demonstrator)
    assert (len(rows.kept), rows.dropped) == (5, {})


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"optim_args": "foo"}, "with optim_args='foo' is refused"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "lr_scheduler_type=cosine_with_min_lr"),
        ({"lr_scheduler_kwargs": "{a: 1}"}, "with lr_scheduler_kwargs={'a': 1} is refused"),
        ({"report_to": "clearml"}, "report_to=clearml needs the package clearml"),
    ],
)
def test_what_transformers_would_refuse_later_leaves_no_run(
    keys: dict[str, Any], capsys: pytest.CaptureFixture[str], changes: dict[str, Any], error: str
) -> None:
    assert main(words({**keys, **changes})) == 2
    assert error in capsys.readouterr().err.splitlines()[-1]
    assert not Path(keys["output_dir"]).exists()


def test_a_run_that_appears_meanwhile_is_left_alone(
    keys: dict[str, Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever starts a command twice has two that found the directory free."""
    run = Path(keys["output_dir"])

    def meanwhile(*args: Any) -> Any:
        run.mkdir()
        (run / "config.yaml").write_text("of the other")
        return make_rows(*args)

    monkeypatch.setattr("ctpo.training.warm_up.run.make_rows", meanwhile)
    assert main(words(keys)) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert [(each.name, each.read_text()) for each in run.iterdir()] == [("config.yaml", "of the other")]


@pytest.mark.parametrize("options", [{}, {"enable_thinking": False}])
def test_prompts_and_last_lines_are_those_of_training(
    keys: dict[str, Any], tmp_path: Path, options: dict[str, Any]
) -> None:
    """The chat template gets the same arguments, and the answer stands where the task's prompt asks for it."""
    model = shutil.copytree(keys["model"], tmp_path / "model")
    qwen3 = files("trl").joinpath("chat_templates", "qwen3.jinja").read_text()
    tokenizer = make_tokenizer(qwen3)
    tokenizer.save_pretrained(model)
    config = model / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "max_position_embeddings": 8192}))
    shown = preview({**keys, "model": str(model), "max_length": 8192, "chat_template_kwargs": options})
    task = with_template_kwargs(get_task(keys["task"]), options)
    assert shown.prompt == tokenizer.decode(encode_prompt(tokenizer, task, GOOD[0]["question"]))
    assert ("</think>" in shown.prompt) == bool(options)
    made = shown.first.rollout
    written = [i for i, own in zip(made.completion_ids, made.response_mask, strict=True) if own]
    assert ("</think>" in tokenizer.decode(written)) != bool(options)
    assert shown.first.text.rstrip().endswith("\\boxed{9}")


def test_a_task_that_makes_its_problems_has_no_solutions(keys: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="give dataset=FILE"):
        make_rows(WarmUpRecipe(), get_task("arithmetic"), None)  # type: ignore[arg-type]
