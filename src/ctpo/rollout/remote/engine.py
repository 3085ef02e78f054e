"""Conversations with a model behind an OpenAI-compatible endpoint: text in and text out.

The model's programs run in our sandbox. This engine is for evaluation only. A server applies its own chat template and
tokenizer, so there are no token ids or log-probs here, and lengths are the server's counts.
"""

from __future__ import annotations

from collections.abc import Sequence

from ctpo.rollout.remote.conversation import ChatConversation, Conversation, Reply, Server, TextConversation
from ctpo.rollout.remote.endpoint import Endpoint
from ctpo.rollout.remote.playing import Playing
from ctpo.rollout.sampling import Sampling
from ctpo.rollout.tools import ToolRunner
from ctpo.tasks import Task
from ctpo.tasks.prompts import Prompt


class EndpointEngine:
    """Samples responses from an endpoint, and runs the tool when the model calls it.

    All conversations take their turns together: first all requests of a turn, some at a time, then all programs.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._server = Server(endpoint)

    def respond(
        self,
        task: Task,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        tools: ToolRunner | None = None,
        playing: Playing | None = None,
        seeds: Sequence[int] = (),
    ) -> list[Reply]:
        """One reply for each prompt, in order. A request that fails ends its own conversation only.

        Args:
            playing: the environments that answer, one per prompt; None for a task without one.
            seeds: one seed for each prompt, sent with its requests; none are sent if this is empty.

        Raises:
            UserError: if the task wants native tool calls and the server refuses them.
        """
        conversations: list[Conversation] = [
            (TextConversation if isinstance(prompt, str) and not task.conversational else ChatConversation)(
                self._server, task, tools, prompt, sampling, seeds[i] if seeds else None
            )
            for i, prompt in enumerate(prompts)
        ]
        live = conversations
        if playing is not None:
            playing.begin(conversations)
        while live:
            self.endpoint.at_once(lambda conversation: conversation.turn(), live)
            if tools is not None:
                _run(tools, live)
            if playing is not None:
                playing.answer(live)
            live = [conversation for conversation in live if not conversation.done]
        if playing is not None:
            playing.finish()
        return [conversation.reply for conversation in conversations]


def _run(tools: ToolRunner, conversations: Sequence[Conversation]) -> None:
    """Make the calls of one turn of all conversations together."""
    calling = [conversation for conversation in conversations if conversation.calls]
    calls = iter(tools.run([call for conversation in calling for call in conversation.calls]))
    for conversation in calling:
        conversation.add_results([next(calls) for _ in conversation.calls])
