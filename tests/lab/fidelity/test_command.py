"""`ctpo fidelity` on the embedded model: from models to figures, on from what was kept, and into the report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ctpo.cli.main import main
from ctpo.errors import UserError
from ctpo.evaluation.model import load_model
from ctpo.lab.fidelity import Sizes
from ctpo.lab.fidelity.kept import Kept
from ctpo.lab.fidelity.samples import fitting, sample
from ctpo.report.collection import collect
from ctpo.report.page import figures, page
from ctpo.rollout import TransformersEngine
from ctpo.rollout.sampling import Sampling
from ctpo.tasks import Problem, get_task
from ctpo.tasks.arithmetic import model_location, model_path
from ctpo.training.sampling.masking import is_truncated

SMALL = [
    "threads=1",
    "num_generations=4",
    "max_completion_length=96",
    "--objective",
    "ctpo",
    "--objective",
    "grpo",
]
SMALL += ["--problems", "6", "--batch-size", "8", "--blocks", "3"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that looks like a run of three rollout batches, whose policies lie on a line."""
    path = tmp_path_factory.mktemp("fidelity") / "run"
    model, tokenizer = load_model(str(model_path()))
    start = {name: weight.clone() for name, weight in model.state_dict().items()}
    for step in (4, 8, 12):
        with torch.no_grad():
            for name, weight in model.named_parameters():
                weight.copy_(start[name] * (1.02 + 0.004 * (12 - step)))
        model.save_pretrained(path / f"checkpoint-{step}")
        tokenizer.save_pretrained(path / f"checkpoint-{step}")
        (path / f"checkpoint-{step}" / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    recipe = "task: arithmetic\nmodel: embedded\nseed: 3\ngeneration_batch_size: 128\n"
    (path / "config.yaml").write_text(recipe + "per_device_train_batch_size: 32\n")
    return path


def test_by_drift_kept_and_reported(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    figure = str(tmp_path / "figure.svg")
    assert main(["fidelity", str(run), *SMALL, "--lags", "1,2", "--figure", figure, "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["sketch"]["error"] < 1e-4
    assert (first["sketch"]["norm"], first["sizes"]["directions"]) == (
        None,
        0,
    )  # exact, since the model is small
    assert first["sketch"]["engine_gap"] < 1e-3
    assert first["left_out"] == 0
    near, far = first["pairs"]
    assert 0 < near["drift"]["log_ratio_std"] < far["drift"]["log_ratio_std"]
    assert Path(figure).is_file()
    kept = run / "fidelity" / "checkpoint-12"
    assert json.loads((kept / "fidelity.json").read_text()) == first

    collection = collect([run])
    shown = figures(collection)
    html = page(collection, shown, "a run")
    by_drift = next(each for each in shown if each.id == "fidelity-component")
    value = far["objectives"][1]["advantages"]["response"]["component"]["value"]
    assert by_drift.series[1].y[1] == value
    assert "Gradient fidelity for" in html

    # What was lost is made again, and nothing else; a pair alone has the same figures.
    before = {path: path.stat().st_mtime_ns for path in kept.rglob("*.npz")}
    lost = kept / "target" / "part-1.npz"
    lost.unlink()
    assert main(["fidelity", str(run), *SMALL, "--lag", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pairs"] == [far]
    after = {path: path.stat().st_mtime_ns for path in kept.rglob("*.npz")}
    assert {path for path in before if before[path] != after[path]} == {lost}

    # Other settings, and a file that was changed, are refused.
    assert main(["fidelity", str(run), *SMALL, "--lag", "1", "--seed", "1"]) == 2
    assert "holds another measurement (other sizes)" in capsys.readouterr().err
    responses = kept / "target" / "responses-000.npz"
    responses.write_bytes(lost.read_bytes())
    assert main(["fidelity", str(run), *SMALL, "--lag", "1"]) == 2
    assert "responses-000.npz has changed since it was written" in capsys.readouterr().err
    (kept / "fidelity.json").write_text(json.dumps({**first, "pairs": [{}]}))
    damaged = collect([run])
    assert not [each for each in figures(damaged) if each.section == "fidelity"]
    assert any("fidelity.json is damaged" in note for note in damaged.runs[0].notes)


def test_credit_of_turns_has_figures_and_a_recommendation_of_its_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("task: worksheet\nmodel: embedded-worksheet\n")
    model, tokenizer = load_model(str(model_location("embedded-worksheet")))
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.02)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "older")
    sizes = [each for each in SMALL if not each.startswith("max_completion")]
    task = [
        "task=worksheet?problems=2",
        "max_completion_length=160",
        "--output",
        str(run / "fidelity" / "of turns"),
    ]
    words = ["fidelity", str(tmp_path / "older"), "embedded-worksheet", *sizes, *task]
    assert main([*words, "--recommend", "--directions", "2"]) == 0
    printed = capsys.readouterr().out
    result = json.loads((run / "fidelity" / "of turns" / "fidelity.json").read_text())
    (pair,) = result["pairs"]
    assert list(pair["recommended"]) == ["response", "turn"]
    for kind in pair["recommended"]:
        best = pair["recommended"][kind]["best"]
        assert f"advantages per {kind}, these objectives are within noise of the best, {best}" in printed
    of_response, of_turn = pair["objectives"][1]["advantages"].values()  # of grpo
    assert of_response["pull"] != of_turn["pull"]
    assert of_response["component"] != of_turn["component"]
    collection = collect([run])
    html = page(collection, figures(collection), "a run")
    for part in ("advantages per turn", "within its noise: ", "norms are sketched along 2 directions"):
        assert part in html
    assert not [note for note in collection.runs[0].notes if "fidelity" in note]


def test_responses_that_training_masks_have_no_tokens_but_a_reward() -> None:
    model, tokenizer = load_model(str(model_path()))
    task = get_task("arithmetic")
    found = [
        sample(
            TransformersEngine(model, tokenizer),
            task,
            task.problems("train", 6, 0),
            Sampling(max_new_tokens=72, temperature=1.0),
            [lambda completions, **_: [1.0] * len(completions)],
            group=2,
            seed=0,
            stream=0,
            first=0,
            masked=masked,
        )
        for masked in (lambda rollout: False, is_truncated)
    ]
    cut = found[1].sampled == 0
    assert 0 < int(cut.sum()) < len(cut)
    assert int(found[0].length[cut].min()) > int(found[0].length[~cut].max()) - 4
    assert found[1].sampled.tolist() == torch.where(cut, 0, found[0].sampled).tolist()
    assert found[1].rewards.tolist() == found[0].rewards.tolist()


def test_wrong_calls_leave_nothing_behind(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    words = ["fidelity", "embedded", "embedded", "threads=1", "--output"]
    assert main([*words, str(tmp_path / "new" / "same")]) == 2
    assert "the same weights" in capsys.readouterr().err
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "letter.txt").write_text("dear")
    assert main([*words, str(tmp_path / "own")]) == 2
    capsys.readouterr()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["letter.txt", "own"]
    for lags, part in (
        ("1,1", "1 is no distance or is given twice"),
        ("7", "no checkpoint 7"),
        ("x", "no whole"),
    ):
        assert main(["fidelity", str(run), "--lag", lags]) == 2
        assert part in capsys.readouterr().err


def test_what_was_made_from_something_else_is_made_again(tmp_path: Path) -> None:
    made: list[str] = []

    def compute(name: str) -> dict[str, Any]:
        made.append(name)
        return {"values": torch.ones(2).numpy()}

    def three(source: str) -> str:
        kept = Kept(tmp_path / "kept", {"seed": 0})
        _, one = kept.arrays("one", [source], lambda: compute("one"))
        return kept.arrays("two", [one], lambda: compute("two"))[1]

    assert three("a") == three("a")
    assert made == ["one", "two"]
    three("b")
    assert made == ["one", "two", "one"]  # whose content is the same, so that what follows from it holds
    with pytest.raises(
        UserError, match=r"other measurement \(other seed\)|another measurement \(other seed\)"
    ):
        Kept(tmp_path / "kept", {"seed": 1})


def test_problems_that_are_too_long_are_left_out_and_counted() -> None:
    task = get_task("arithmetic")
    _, tokenizer = load_model(str(model_path()))
    problems = [Problem(prompt="1" * n + "+1=", answer="2", id=str(n)) for n in (3, 90, 4, 5, 80, 6)]
    chosen, left_out = fitting(task, problems, tokenizer, 40, 3)
    assert ([each.id for each in chosen], left_out) == (["3", "4", "5"], 1)
    chosen, left_out = fitting(task, problems, tokenizer, 40, 6)
    assert ([each.id for each in chosen], left_out) == (["3", "4", "5", "6"], 2)
    assert fitting(task, problems, tokenizer, None, 6) == (problems, 0)
    assert fitting(task, problems, tokenizer, -3, 6) == ([], 6)


def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(UserError, match="use a multiple of 24"):
        Sizes(problems=20, batch=24, blocks=8).check(8)
