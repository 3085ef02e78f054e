"""Conversations with a model behind an OpenAI-compatible endpoint: text in, text out, programs in our sandbox.

For evaluation only. A server applies its own template and tokeniser, so nothing here knows tokens or log-probs;
lengths are the server's counts.
"""

from __future__ import annotations

from collections.abc import Sequence

from ctpo.rollout.remote.conversation import Chat, Reply, Server, Talk, Text
from ctpo.rollout.remote.endpoint import Endpoint
from ctpo.rollout.sampling import Sampling
from ctpo.rollout.tools import ToolRunner
from ctpo.tasks import Task


class EndpointEngine:
    """Samples responses from an endpoint, running the tool where the model calls it.

    Turns go in step: all requests of a turn, some at a time, then all programs together.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._server = Server(endpoint)

    def respond(
        self,
        task: Task,
        prompts: Sequence[str],
        sampling: Sampling,
        *,
        tools: ToolRunner | None = None,
        seeds: Sequence[int] = (),
    ) -> list[Reply]:
        """One reply a prompt, in order; a request that fails ends its own conversation only.

        Raises:
            UserError: if the task wants native tool calls and the server refuses them.
        """
        tool = None if tools is None else tools.tool
        kind = Chat if task.conversational else Text
        talks: list[Talk] = [
            kind(self._server, task, tool, prompt, sampling, seeds[i] if seeds else None)
            for i, prompt in enumerate(prompts)
        ]
        live = talks
        while live:
            self.endpoint.at_once(lambda talk: talk.turn(), live)
            if tools is not None:
                _run(tools, live)
            live = [talk for talk in live if not talk.done]
        return [talk.reply for talk in talks]


def _run(tools: ToolRunner, talks: Sequence[Talk]) -> None:
    """Run the programs of one turn of all conversations together."""
    asking = [talk for talk in talks if talk.programs]
    calls = iter(tools.run([program for talk in asking for program in talk.programs]))
    for talk in asking:
        talk.hear([next(calls) for _ in talk.programs])
