"""Turning a task's conversation into tokens, with the model's own chat template and form of tool calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from ctpo.errors import UserError, well_formed
from ctpo.rollout.calls import CallFormat, call_format
from ctpo.rollout.template import Template
from ctpo.tasks import PythonTool, Task
from ctpo.tasks.prompts import HOW_TO_CALL, Message, placed

# Contents of a test conversation, to be looked for in what a template makes of it.
_USER_TEXT, _ASSISTANT_TEXT, _TOOL_TEXT = "WHAT-WAS-ASKED", "WHAT-WAS-SAID", "WHAT-WAS-PRINTED"


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, task: Task, prompt: str | Sequence[Message]
) -> list[int]:
    """The token ids that the model continues: the bare prompt, or the conversation in the chat template.

    A prompt of messages is a conversation in every task.

    Raises:
        UserError: if the task is a conversation, and the tokenizer has no chat template or its template refuses it.
    """
    text = prompt
    if task.conversational or not isinstance(text, str):
        if not tokenizer.chat_template:
            raise UserError(
                f"task {task.name!r} is a conversation, but the model's tokenizer has no chat template; use an "
                "instruction-tuned model, or set tokenizer.chat_template"
            )
        text = _render_task(tokenizer, task, prompt)
    ids: list[int] = tokenizer.encode(well_formed(text), add_special_tokens=False)
    return ids


def task_format(tokenizer: PreTrainedTokenizerBase, task: Task) -> CallFormat | None:
    """The form in which this model calls the tools of the task; None without tools."""
    return call_format(tokenizer, task.all_tools, task.template_kwargs)


def _result_tags(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str] | None:
    """The template's texts before and after a tool's message that follows an assistant's; None if it has none."""
    if not tokenizer.chat_template:
        return None
    text = Template(tokenizer).render(
        [
            {"role": "user", "content": _USER_TEXT},
            {"role": "assistant", "content": _ASSISTANT_TEXT},
            {"role": "tool", "content": _TOOL_TEXT},
        ],
    )
    if text is None or text.count(_ASSISTANT_TEXT) != 1 or text.count(_TOOL_TEXT) != 1:
        return None
    between, _, after = text.partition(_ASSISTANT_TEXT)[2].partition(_TOOL_TEXT)
    return (between, after) if between and after and between != after else None


def _render_task(tokenizer: PreTrainedTokenizerBase, task: Task, prompt: str | Sequence[Message]) -> str:
    form = task_format(tokenizer, task)
    messages = task.messages(prompt)
    tools: Sequence[Any] = ()
    if form is not None:
        tools = form.declarations
        messages = with_instructions(messages, form.instructions, task)
        if task.tool is not None and (task.tool.style == "tags" or _result_tags(tokenizer) is None):
            messages = fold_results(messages, task.tool)
    template = Template(tokenizer, task.template_kwargs, tools)
    text = template.render(messages)
    if text is None:  # some templates have no system role
        text = template.render(_fold_system(messages))
    if text is None:
        raise UserError(
            f"the model's chat template cannot render task {task.name!r} (roles: "
            f"{', '.join(message['role'] for message in messages)}); give the task other examples"
        )
    return text


def fold_results(messages: list[dict[str, str]], tool: PythonTool) -> list[dict[str, str]]:
    """The messages with each tool message moved into the assistant's message before it, between the result tags.

    This is how a result appears when the model runs.
    """
    folded: list[dict[str, str]] = []
    resuming = False
    for message in messages:
        if message["role"] == "tool" and folded:
            folded[-1]["content"] += tool.result_open + message["content"] + tool.result_close
            resuming = True
        elif resuming and message["role"] == "assistant":
            folded[-1]["content"] += message["content"]
            resuming = False
        else:
            folded.append(dict(message))
            resuming = False
    return folded


def with_instructions(messages: list[dict[str, str]], instructions: str, task: Task) -> list[dict[str, str]]:
    """The messages, of which the first says how to call tools, unless the task's own text shows it.

    One paragraph stands where the task's system message has its place for it, and anything else below that message.
    Only the Python tool can be shown by the task's own text. Functions are always described.
    """
    if not instructions:
        return messages
    system, own = messages[0], task.system or ""
    if (
        HOW_TO_CALL in own
        and system == {"role": "system", "content": placed(own, "")}
        and "\n" not in instructions
    ):
        return [{"role": "system", "content": placed(own, instructions)}, *messages[1:]]
    alone = task.tool if not task.functions else None
    if alone is not None and any(alone.open in each["content"] for each in messages[:-1]):
        return messages
    if system["role"] == "system":
        return [{"role": "system", "content": f"{system['content']}\n\n{instructions}"}, *messages[1:]]
    return [{"role": "system", "content": instructions}, *messages]


def _fold_system(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    if len(messages) < 2 or messages[0]["role"] != "system":
        return messages
    first = {**messages[1], "content": messages[0]["content"] + "\n\n" + messages[1]["content"]}
    return [first, *messages[2:]]
