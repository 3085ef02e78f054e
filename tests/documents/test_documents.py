"""What the README says works, works."""

from __future__ import annotations

import contextlib
import io
import posixpath
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from handbook.pages import made

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def code(containing: str) -> str:
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    return next(block for block in blocks if containing in block)


def test_readme_objective(capsys: pytest.CaptureFixture[str]) -> None:
    logps = torch.randn(4, 9).sub(3).requires_grad_()
    names: dict[str, Any] = {
        "logps": logps,
        "old_logps": logps.detach() + 0.1 * torch.randn(4, 9),
        "advantages": torch.randn(4),
        "response_mask": torch.ones(4, 9, dtype=torch.bool),
    }
    exec(code("preset("), names)
    assert logps.grad is not None
    assert capsys.readouterr().out.startswith("tensor(")


def test_readme_trainer(arithmetic: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As printed, but for the model, which is the embedded one, and the CPU."""
    from datasets import Dataset

    from ctpo.tasks.arithmetic import model_path

    monkeypatch.chdir(tmp_path)
    printed = (
        code("CTPOTrainer")
        .replace("Qwen/Qwen3-0.6B", str(model_path()))
        .replace('CTPOConfig("out",', 'CTPOConfig("out", max_steps=2, max_completion_length=4, use_cpu=True,')
    )
    problems = arithmetic.problems("train", 32, 0)
    names: dict[str, Any] = {
        "my_reward": lambda completions, **_: [float(len(set(text))) for text in completions],
        "my_prompts": Dataset.from_dict({"prompt": [problem.prompt for problem in problems]}),
    }
    exec(printed, names)
    assert names["trainer"].state.global_step == 2


def test_readme_recipe() -> None:
    import yaml

    from ctpo.training.config.settings import build

    block = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)[0]
    recipe, config = build({**yaml.safe_load(block), "output_dir": "unused", "use_cpu": True})
    assert config.updates_per_rollout_batch == 16
    assert config.max_steps == 256
    assert recipe.task == "arithmetic"


DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("recipes/*/*.md")]


MADE = set(made())
"""Pages that exist only in the site."""


@pytest.mark.parametrize("document", [path.relative_to(ROOT) for path in DOCUMENTS], ids=str)
def test_links_lead_somewhere(document: Path) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        place = posixpath.normpath(f"{document.parent}/{target}").removeprefix("docs/")
        if "://" not in target and place not in MADE:
            assert (ROOT / document).parent.joinpath(target).exists(), target


def test_the_architecture_names_every_room() -> None:
    table = (ROOT / "docs" / "explanation" / "architecture.md").read_text(encoding="utf-8")
    rooms = {path.name for path in (ROOT / "src" / "ctpo").iterdir() if (path / "__init__.py").exists()}
    assert {room for room in rooms if f"`{room}/`" not in table} == set()


def test_readme_reads_on_pypi() -> None:
    """It is short, and every link and picture is absolute and leads to a file of the repository."""
    assert len(README.splitlines()) <= 120
    repository = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]
    raw = repository.replace("github.com", "raw.githubusercontent.com")
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert target.startswith("https://"), target
        for base in (f"{repository}/blob/main/", f"{raw}/main/"):
            if target.startswith(base):
                assert (ROOT / target.removeprefix(base).partition("#")[0]).is_file(), target
                break
        else:
            assert target.startswith("https://arxiv.org/"), target


def test_the_address_of_the_repository_is_one() -> None:
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    for name in ("README.md", "CITATION.cff", "SECURITY.md"):
        text = (ROOT / name).read_text(encoding="utf-8")
        found = set(re.findall(r"https://github\.com/[\w.-]+/[\w-]+", text))
        assert found == {urls["Repository"]}, name


@pytest.mark.parametrize(
    "recipe", sorted(ROOT.glob("recipes/smollm2-*/train.yaml")), ids=lambda path: path.parent.name
)
def test_a_recipe_of_the_small_model(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import yaml

    from ctpo.tasks import get_task
    from ctpo.training.config.settings import build

    monkeypatch.chdir(ROOT)
    keys = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    if keys["model"].startswith("runs/"):  # what another command of the recipe makes
        keys["model"] = "smollm2"
    build({**keys, "use_cpu": True, "bf16": False})
    get_task(keys["task"])
    task = get_task(keys["task"].partition(":")[0])  # the form with examples
    assert task.examples
    assert task.tool is not None
    for said, printed, concluded in zip(
        task.examples[1::4], task.examples[2::4], task.examples[3::4], strict=True
    ):
        program = task.tool.extract(said["content"].partition(task.tool.open)[2])
        assert [message["role"] for message in (said, printed, concluded)] == [
            "assistant",
            "tool",
            "assistant",
        ]
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown):
            exec(program)  # ours, and short
        assert shown.getvalue().strip() == printed["content"]
        assert task.check(concluded["content"], printed["content"])
