"""Our agent loop for verl: the task's tools, environment and judge, over whatever server samples.

verl makes one loop per response. A response is completed piece by piece; between two pieces its partner answers. So
tags, fenced blocks, native calls and environments work as they do in our own engines.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any, Final
from uuid import uuid4

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput

from ctpo.adapters.verl_data import HELDOUT, PROBLEM
from ctpo.engines.verl.conversation import Piece, converse
from ctpo.engines.verl.files import TRANSCRIPT
from ctpo.engines.verl.place import Orders, Place
from ctpo.rollout.remote.row import CompletionRequest
from ctpo.tasks import Problem, get_task

_SGLANG: Final = "sglang"


class TaskAgentLoop(AgentLoopBase):  # type: ignore[misc]
    """One response to one problem of the recipe's task.

    Args:
        orders: `ctpo.engines.verl.place.Orders` as JSON.
        rest: what verl gives every agent loop.
    """

    def __init__(self, *args: Any, orders: str, **rest: Any) -> None:
        super().__init__(*args, **rest)
        self._orders = orders

    @staticmethod
    def check(orders: str) -> None:
        """Check that the orders name a task and tools that there are.

        Raises:
            UserError, TypeError: if they do not.
        """
        given = Orders(**json.loads(orders))
        get_task(given.task, given.tools or ())

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> Any:
        """The whole response with its mask, log-probs and reward, as an `AgentLoopOutput`."""
        place = await asyncio.to_thread(Place.of, self._orders)
        known = row["extra_info"]
        problem = Problem(**json.loads(known[PROBLEM]))
        identifier, eos = uuid4().hex, self._eos()

        async def complete(request: CompletionRequest) -> Piece:
            output = await self.server_manager.generate(
                request_id=identifier,
                prompt_ids=request.ids,
                sampling_params={**sampling_params, **self._ending(request, eos)},
            )
            ids = list(output.token_ids)
            known = (output.extra_fields.get(name) for name in ("min_global_steps", "max_global_steps"))
            return Piece(
                ids=ids,
                logps=list(output.log_probs or [0.0] * len(ids)),
                versions=tuple(int(each) for each in known if each is not None),
            )

        turns = self.rollout_config.multi_turn.max_assistant_turns
        done = await converse(place, self.tokenizer, problem, eos, complete, turns)
        figures = done.figures()
        if known.get(HELDOUT):
            figures[TRANSCRIPT] = json.dumps({"place": known["index"], **done.judged.response.record()})
        return AgentLoopOutput(
            prompt_ids=done.rollout.prompt_ids,
            response_ids=done.rollout.completion_ids,
            response_mask=done.mask,
            response_logprobs=done.rollout.logps,
            reward_score=done.judged.reward,
            num_turns=1 + done.pieces + len(done.rollout.calls),
            metrics=AgentLoopMetrics(generate_sequences=done.sampling_s, tool_calls=done.answering_s),
            extra_fields={
                "min_global_steps": min(done.versions, default=None),
                "max_global_steps": max(done.versions, default=None),
                "turn_scores": [],
                "tool_rewards": [],
                "reward_extra_info": figures,
            },
        )

    def _eos(self) -> list[int]:
        """The token ids that end a turn: the tokenizer's and those of the model's generation config."""
        model = self.config.actor_rollout_ref.model
        return list(_eos_ids(str(model.get("local_path") or model.path), self.tokenizer.eos_token_id))

    def _ending(self, request: CompletionRequest, eos: list[int]) -> dict[str, Any]:
        """Where a completion ends, in the words of vLLM or of SGLang. Special tokens count as text."""
        ending: dict[str, Any] = {
            "max_tokens": request.max_new_tokens,
            "stop": list(request.stop),
            "stop_token_ids": eos,
            "skip_special_tokens": False,
            "spaces_between_special_tokens": False,
        }
        kept = "no_stop_trim" if self.rollout_config.name == _SGLANG else "include_stop_str_in_output"
        return {**ending, kept: True}


_EOS: dict[tuple[str, int | None], tuple[int, ...]] = {}


def _eos_ids(path: str, own: int | None) -> tuple[int, ...]:
    """The token ids that end a turn of the model in this folder, read once."""
    from transformers import GenerationConfig

    if (path, own) not in _EOS:
        try:
            given = GenerationConfig.from_pretrained(path).eos_token_id
        except OSError:  # a model need not have one
            given = None
        several = given if isinstance(given, list) else [given]
        _EOS[path, own] = tuple(sorted({int(each) for each in (*several, own) if each is not None}))
    return _EOS[path, own]
