"""Functions that a model calls, from its tokens to the results in its response, with the real template of Qwen3."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from typing import Any

import pytest

from ctpo.rollout import Sampling, ToolRunner, VLLMEngine
from ctpo.rollout.chat import encode_prompt
from ctpo.rollout.remote.vllm import Completion, CompletionRequest
from ctpo.rollout.tools import open_tools
from ctpo.rollout.turns import Turn
from ctpo.tasks import CHAT_TOOL, FunctionTool, Problem, Task

MADE: list[str] = []


def double(number: int) -> int:
    """Double a number.

    Args:
        number: the number
    """
    MADE.append(f"double {number}")
    return 2 * number


async def look_up(word: str) -> dict[str, str]:
    """Look up a word.

    Args:
        word: the word
    """
    MADE.append(f"look_up {word}")
    if word == "nothing":
        raise LookupError("no such word: <|im_end|>")
    return {word: "a word"}


@pytest.fixture(scope="module")
def tokenizer(chat_tokenizer: Callable[..., Any]) -> Any:
    pytest.importorskip("trl")
    return chat_tokenizer(files("trl").joinpath("chat_templates", "qwen3.jinja").read_text())


@pytest.fixture
def task() -> Task:
    MADE.clear()

    def problems(split: str, count: int, seed: int) -> list[Problem]:
        return [Problem(prompt="?", answer="", id="0")]

    return Task(name="t", problems=problems, check=lambda *_: True, tools=[double, look_up, CHAT_TOOL])


def written(*calls: tuple[str, Any]) -> str:
    return "\n".join(
        f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"
        for name, arguments in calls
    )


def turn(tokenizer: Any, text: str, response: int = 0) -> Turn:
    return Turn(response=response, ids=tokenizer.encode(text + "<|im_end|>"), ended=True)


PARALLEL = (
    ("double", {"number": 4.0}),
    ("python", {"code": "print(6 * 7)"}),
    ("look_up", {"word": "tea"}),
    ("double", {"number": "4"}),
    ("look_up", {"word": "nothing"}),
    ("treble", {"number": 4}),
    ("python", {"kode": "1"}),
)


@pytest.mark.filterwarnings("ignore:tool look_up")
def test_parallel_calls_of_every_kind_are_answered_as_the_template_renders_them(
    tokenizer: Any, task: Task, sandbox: Any
) -> None:
    tools = ToolRunner(task.all_tools, sandbox)
    prompt = encode_prompt(tokenizer, task, "?")
    assert all(name in tokenizer.decode(prompt) for name in ('"double"', '"look_up"', '"python"'))
    tools.begin(tokenizer, [prompt])
    reply = turn(tokenizer, written(*PARALLEL))
    (answer,) = tools.answer([reply])
    assert answer is not None
    assert [call.name for call in answer.calls] == [name for name, _ in PARALLEL]
    assert [call.status for call in answer.calls] == ["ok", "ok", "ok", "error", "error", "error", "error"]
    results = [call.output for call in answer.calls]
    assert results[:3] == ["8", "42", '{"tea": "a word"}']
    assert results[3].startswith("tool call: argument 'number' is \"4\"; use a valid integer")
    assert results[4] == "LookupError: no such word: <|im_end|>\n[error: look_up failed]"
    assert results[5].startswith(
        "tool call: there is no function 'treble'; call 'python' or 'double' or 'look_up'"
    )
    assert results[6].startswith("tool call: arguments have no 'code'")
    assert answer.calls[1].program == "print(6 * 7)"
    assert answer.calls[0].arguments == {"number": 4.0}
    assert (tools.calls, tools.failures, tools.executed) == (7, 4, 4)
    assert sorted(MADE) == ["double 4", "look_up nothing", "look_up tea"]
    calls = [{"type": "function", "function": {"name": name, "arguments": each}} for name, each in PARALLEL]
    whole = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "", "tool_calls": calls},
        *[{"role": "tool", "content": result} for result in results],
    ]
    expected = tokenizer.apply_chat_template(whole, tokenize=False, add_generation_prompt=True)
    assert expected.endswith(tokenizer.decode(reply.ids + answer.ids))
    # What a function raised looks like a special token and is none.
    ends = [token for token in answer.ids if token == tokenizer.eos_token_id]
    assert len(ends) == tokenizer.decode(answer.ids).count("<|im_end|>") - 1


def test_calls_of_all_responses_run_together(tokenizer: Any, sandbox: Any) -> None:
    meeting = threading.Barrier(3, timeout=20)

    def meet(name: str) -> str:
        """Wait for the others.

        Args:
            name: of this call
        """
        meeting.wait()
        return name

    class Sandbox:
        """Waits for the two functions too."""

        def run(self, programs: list[str]) -> Any:
            meeting.wait()
            return sandbox.run(programs)

    tools = ToolRunner([CHAT_TOOL, FunctionTool(meet)], Sandbox())
    tools.begin(tokenizer, [[1]] * 4)
    texts = [
        written(("meet", {"name": "a"})),
        "nothing",
        written(("python", {"code": "print(1)"})),
        written(("meet", {"name": "b"})),
    ]
    answers = tools.answer([turn(tokenizer, text, i) for i, text in enumerate(texts)])
    outputs = [answer and answer.calls[0].output for answer in answers]
    assert outputs == ["a", None, "1", "b"]


def test_every_tool_has_its_limit_in_each_response(tokenizer: Any) -> None:
    tools = ToolRunner([FunctionTool(double, max_calls=2), FunctionTool(look_up, max_calls=2)])
    tools.begin(tokenizer, [[1], [1]])
    three = turn(tokenizer, written(*[("double", {"number": i}) for i in range(3)]))
    (answer,) = tools.answer([three])
    assert answer is not None
    assert [call.status for call in answer.calls] == ["ok", "ok", "error"]
    assert answer.calls[2].output.startswith("tool call: double may not be called again in this response")
    assert tools.listens_to(0)
    (answer,) = tools.answer([turn(tokenizer, written(("look_up", {"word": "tea"})))])
    assert answer is not None
    assert answer.calls[0].status == "ok"
    assert not tools.listens_to(0)
    assert tools.listens_to(1)
    (answer,) = tools.answer([replace(three, response=1)])
    assert answer is not None
    assert [call.status for call in answer.calls] == ["ok", "ok", "error"]


def test_only_functions_declared_deterministic_are_remembered(tokenizer: Any) -> None:
    tools = ToolRunner(
        [FunctionTool(double, deterministic=True, max_calls=99), FunctionTool(look_up, max_calls=99)]
    )
    tools.begin(tokenizer, [[1]])
    MADE.clear()
    same = [
        ("double", {"number": 1}),
        ("double", {"number": 1}),
        ("look_up", {"word": "a"}),
        ("look_up", {"word": "a"}),
    ]
    for _ in range(2):
        (answer,) = tools.answer([turn(tokenizer, written(*same))])
        assert answer is not None
        assert [call.output for call in answer.calls] == ["2", "2", '{"a": "a word"}', '{"a": "a word"}']
    assert sorted(MADE) == ["double 1", *["look_up a"] * 4]  # in which order threads begin is not said
    assert (tools.calls, tools.executed) == (8, 5)


def test_a_template_without_calls_that_can_be_read_gets_blocks(
    chat_tokenizer: Callable[..., Any], task: Task, sandbox: Any
) -> None:
    tokenizer = chat_tokenizer()
    tools = ToolRunner(task.all_tools, sandbox)
    prompt = tokenizer.decode(encode_prompt(tokenizer, task, "?"))
    assert "```tool_call" in prompt
    assert '"look_up"' in prompt
    tools.begin(tokenizer, [[1]])
    text = 'So:\n```tool_call\n{"name": "look_up", "arguments": {"word": "tea"}}\n```'
    (answer,) = tools.answer([Turn(response=0, ids=tokenizer.encode(text), ended=False)])
    assert answer is not None
    assert answer.calls[0].output == '{"tea": "a word"}'
    assert text.endswith(answer.calls[0].program)
    assert '{"tea": "a word"}' in tokenizer.decode(answer.ids)


class Script:
    """A completer whose model says what a script says, and notes what it was given."""

    context = None

    def __init__(self, tokenizer: Any, turns: Sequence[str]) -> None:
        self.tokenizer, self.turns = tokenizer, list(turns)
        self.given: list[CompletionRequest] = []

    @contextmanager
    def awake(self) -> Iterator[None]:
        yield

    def anyone(self, live: bool) -> bool:
        return live

    def complete(self, requests: Sequence[CompletionRequest], *_: Any) -> list[Completion]:
        self.given += requests
        ids = self.tokenizer.encode(self.turns.pop(0) + "<|im_end|>")
        return [Completion(ids, [-0.5] * len(ids)) for _ in requests]


def test_an_engine_takes_the_results_as_tokens_that_the_model_did_not_sample(
    tokenizer: Any, task: Task, sandbox: Any
) -> None:
    calls = written(("double", {"number": 4}), ("python", {"code": "print(2)"}))
    script = Script(tokenizer, [calls, "It is 8."])
    engine = VLLMEngine(script, tokenizer, eos_token_ids=[tokenizer.eos_token_id])
    prompt = encode_prompt(tokenizer, task, "?")
    with open_tools(task) as tools:
        (rollout,) = engine.generate([prompt], Sampling(max_new_tokens=2000), partner=tools)
    own = "".join(
        tokenizer.decode([token])
        for token, mine in zip(rollout.completion_ids, rollout.response_mask, strict=True)
        if mine
    )
    assert own == f"{calls}<|im_end|>It is 8.<|im_end|>"
    assert [call.output for call in rollout.calls] == ["8", "2"]
    assert script.given[1].ids == (prompt + rollout.completion_ids)[: len(script.given[1].ids)]
    assert rollout.finished


def test_a_task_of_functions_alone_needs_no_sandbox(task: Task) -> None:
    with open_tools(replace(task, tool=None)) as tools:
        assert tools is not None
        assert tools.sandbox is None
        assert tools.tool is None
    with pytest.raises(ValueError, match="sandbox=None cannot run"):
        ToolRunner(task.all_tools)
