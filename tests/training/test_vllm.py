"""The parts of TRL's vLLM that we use exist in the installed TRL, and get the right requests."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
from trl import GRPOTrainer
from trl.generation.vllm_client import VLLMClient
from trl.generation.vllm_generation import VLLMGeneration

from ctpo.rollout.remote.vllm import CompletionRequest
from ctpo.rollout.sampling import Sampling
from ctpo.training.sampling.vllm import GENERATION_ATTRIBUTES, TRLCompleter, vllm_engine

SAMPLING = Sampling(max_new_tokens=9, temperature=0.8, top_p=0.9, top_k=4)


class Client:
    """Stands for TRL's client, with the same signature. A completion counts up from the last id of the prompt."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def generate(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        bound = inspect.signature(VLLMClient.generate).bind(self, *args, **kwargs)
        self.calls.append(dict(bound.arguments))
        ids = [[prompt[-1] + 1, prompt[-1] + 2] for prompt in bound.arguments["prompts"]]
        return {"completion_ids": ids, "logprobs": [[[-0.5], [None]] for _ in ids]}


def server(client: Client, processes: int = 1) -> Any:
    accelerator = SimpleNamespace(is_main_process=True, num_processes=processes, process_index=0)
    return SimpleNamespace(mode="server", accelerator=accelerator, vllm_client=client)


def test_trl_still_has_what_is_used() -> None:
    source = inspect.getsource(VLLMGeneration)
    for name in GENERATION_ATTRIBUTES:
        assert f"self.{name}" in source or hasattr(VLLMGeneration, name), name
    trainer = inspect.getsource(GRPOTrainer)
    for name in ("self.vllm_generation = VLLMGeneration(", "self._last_loaded_step = self.state.global_step"):
        assert name in trainer
    sent = inspect.getsource(VLLMClient.generate)
    assert "sampling_params.update(generation_kwargs" in sent  # so that stop texts reach vLLM


def test_a_first_turn_is_one_request_and_later_ones_are_one_a_row() -> None:
    client = Client()
    completer = TRLCompleter(server(client), 100)
    same = [CompletionRequest(ids=[i], max_new_tokens=9, stop=("</py>",)) for i in range(5)]
    ((ids, logps), *_) = completer.complete(same, SAMPLING, [0])
    assert ids == [1, 2]
    assert logps[0] == -0.5
    assert logps[1] != logps[1]  # NaN: vLLM could not score it
    (call,) = client.calls
    assert call["prompts"] == [[i] for i in range(5)]
    assert (call["temperature"], call["top_p"], call["top_k"], call["max_tokens"]) == (0.8, 0.9, 4, 9)
    assert call["logprobs"] == 0
    assert call["generation_kwargs"] == {
        "stop": ["</py>"],
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
        "spaces_between_special_tokens": False,
        "stop_token_ids": [0],
    }
    client.calls.clear()
    rows = [CompletionRequest(ids=[i], max_new_tokens=9 - i, seed=i) for i in range(5)]
    assert [ids for ids, _ in completer.complete(rows, SAMPLING, [0])] == [[i + 1, i + 2] for i in range(5)]
    assert sorted(call["max_tokens"] for call in client.calls) == [5, 6, 7, 8, 9]
    assert {call["generation_kwargs"]["seed"] for call in client.calls} == set(range(5))
    assert completer.complete([], SAMPLING, [0]) == []


def test_every_process_gets_its_own_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with different numbers of rows. This one is the main process, so the other's rows come second."""
    client = Client()
    other: dict[type, list[Any]] = {
        int: [1],
        CompletionRequest: [CompletionRequest(ids=[50], max_new_tokens=9)],
        bool: [True],
    }
    monkeypatch.setattr(
        "ctpo.training.sampling.vllm.gather_object",
        lambda mine: mine + other[type((mine or [CompletionRequest])[0])],
    )
    monkeypatch.setattr(
        "ctpo.training.sampling.vllm.broadcast_object_list", lambda objects, from_process: objects
    )
    completer = TRLCompleter(server(client, processes=2), 100)
    mine = [CompletionRequest(ids=[i], max_new_tokens=9) for i in range(3)]
    assert [ids[0] for ids, _ in completer.complete(mine, SAMPLING, [])] == [1, 2, 3]
    assert client.calls[0]["prompts"] == [[0], [1], [2], [50]]
    assert completer.anyone(False)  # the other process has requests left


def test_a_sleeping_model_wakes_once_a_rollout() -> None:
    story: list[str] = []
    llm = SimpleNamespace(
        wake_up=lambda tags: story.append(f"wake {tags}"), sleep=lambda level: story.append(f"sleep {level}")
    )
    generation = SimpleNamespace(
        mode="colocate",
        tensor_parallel_size=1,
        enable_sleep_mode=True,
        _llm_weights_sleeping=True,
        sync_weights=lambda: story.append("sync"),
        llm=llm,
    )
    with TRLCompleter(generation, None).awake():
        story.append("turns")
    assert story == ["sync", "wake ['kv_cache']", "turns", "sleep 2"]
    assert generation._llm_weights_sleeping


def test_weights_are_synchronised_when_the_step_changed() -> None:
    synced: list[int] = []
    generation = SimpleNamespace(
        mode="colocate",
        tensor_parallel_size=1,
        enable_sleep_mode=False,
        sync_weights=lambda: synced.append(1),
        llm=SimpleNamespace(llm_engine=SimpleNamespace(model_config=SimpleNamespace(max_model_len=64))),
    )
    trainer = SimpleNamespace(
        vllm_generation=generation,
        state=SimpleNamespace(global_step=4),
        _last_loaded_step=0,
        processing_class=None,
        eos_token_ids=[0],
    )
    engine = vllm_engine(trainer)
    vllm_engine(trainer)
    assert synced == [1]
    assert engine.room(Sampling(max_new_tokens=4)) == 60


def test_use_vllm_picks_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    from ctpo.rollout import Rollout
    from ctpo.training.sampling import rollout_func as module

    class Engine:
        def generate(
            self, prompts: list[list[int]], sampling: Sampling, partner: Any, uniforms: Any
        ) -> list[Rollout]:
            return [
                Rollout(prompt_ids=p, completion_ids=[7], response_mask=[1], logps=[-1.0], finished=True)
                for p in prompts
            ]

    monkeypatch.setattr(module, "vllm_engine", lambda trainer: Engine())
    trainer = SimpleNamespace(
        use_vllm=True,
        model=SimpleNamespace(training=True),
        mask_truncated_completions=False,
        processing_class=SimpleNamespace(encode=lambda text, add_special_tokens: [ord(c) for c in text]),
        max_completion_length=9,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
    )
    output = module.make_rollout_func(None)(["a", "b"], trainer)
    assert output["completion_ids"] == [[7], [7]]
    assert output["prompt_ids"] == [[97], [98]]
