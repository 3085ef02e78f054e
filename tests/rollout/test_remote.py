"""Conversations over HTTP: the requests that are sent, and the treatment of answers and failures."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ctpo.errors import UserError
from ctpo.rollout import Endpoint, EndpointEngine, ToolRunner
from ctpo.rollout.sampling import Sampling
from ctpo.tasks import CHAT_TOOL, FunctionTool, Task, get_task

from .served import Answer, choice, serving

SAMPLING = Sampling(max_new_tokens=100, temperature=0.7, top_p=0.9, top_k=5)


def respond(
    task: Task,
    sandbox: Any,
    script: list[Answer] | Any,
    *prompts: Any,
    sampling: Sampling = SAMPLING,
    **options: Any,
) -> tuple[list[Any], list[Any]]:
    """The replies, and the payloads that were sent."""
    answers = iter(script) if isinstance(script, list) else None
    with serving(lambda path, payload: next(answers) if answers else script(path, payload)) as (
        url,
        requests,
    ):
        endpoint = Endpoint(url, "tiny", **{"retries": 0, **options})
        tools = None if task.tool is None else ToolRunner(task.tool, sandbox)
        replies = EndpointEngine(endpoint).respond(
            task, prompts, sampling, tools=tools, seeds=range(7, 7 + len(prompts))
        )
    return replies, [payload for _, payload, _ in requests]


def said(content: str | None, finish: str = "stop", tokens: tuple[int, int] = (10, 5), **rest: Any) -> Answer:
    return choice(finish, tokens, message={"role": "assistant", "content": content, **rest})


def call(name: str, code: str) -> dict[str, Any]:
    return {
        "id": name,
        "type": "function",
        "function": {"name": "python", "arguments": json.dumps({"code": code})},
    }


@pytest.fixture
def fenced(chat_task: Task) -> Task:
    return replace(chat_task, tool=replace(CHAT_TOOL, style="fenced"))


def test_native_calls_run_and_come_back_as_tool_messages(chat_task: Task, sandbox: Any) -> None:
    script = [
        said(None, "tool_calls", (10, 5), tool_calls=[call("c1", "print(6*7)"), call("c2", "print(1)")]),
        said("It is 42.", "stop", (40, 6)),
    ]
    (reply,), sent = respond(chat_task, sandbox, script, "6*7?")
    assert [(c.program, c.status) for c in reply.calls] == [("print(6*7)", "ok"), ("print(1)", "ok")]
    assert (reply.finished, reply.tokens, reply.error) == (True, 11, None)
    assert reply.text.endswith("It is 42.")
    first, second = sent
    assert first["model"] == "tiny"
    assert first["tools"][0]["function"]["name"] == "python"
    assert "stop" not in first
    assert (first["temperature"], first["top_p"], first["top_k"], first["seed"]) == (0.7, 0.9, 5, 7)
    assert (first["max_tokens"], second["max_tokens"]) == (100, 95)
    assert [m["role"] for m in second["messages"]] == ["system", "user", "assistant", "tool", "tool"]
    assert [(m["tool_call_id"], m["content"]) for m in second["messages"][3:]] == [("c1", "42"), ("c2", "1")]


def test_length_counts_the_tools_output_by_the_servers_own_numbers(chat_task: Task, sandbox: Any) -> None:
    turn = {"tool_calls": [call("c", "print('x')")]}
    script = [said(None, "tool_calls", (10, 30), **turn), said(None, "tool_calls", (90, 20), **turn)]
    (reply,), sent = respond(chat_task, sandbox, script, "q")
    assert [payload["max_tokens"] for payload in sent] == [100, 70]
    assert len(reply.calls) == 1  # 80 of prompt growth and 20 new fill the room
    assert reply.tokens == 50


def test_a_fenced_block_is_stopped_completed_and_run(fenced: Task, sandbox: Any) -> None:
    script = [
        said("Let me see.\n```python\nprint(6*7)"),  # the stop text is cut off by the server
        said("\\boxed{42}"),
    ]
    (reply,), sent = respond(fenced, sandbox, script, "6*7?")
    assert [c.program.strip() for c in reply.calls] == ["print(6*7)"]
    assert sent[0]["stop"] == ["\n```\n"]
    assert "tools" not in sent[0]
    assert sent[1]["messages"][-2:] == [
        {"role": "assistant", "content": "Let me see.\n```python\nprint(6*7)\n```"},
        {"role": "user", "content": "```output\n42\n```"},
    ]
    assert reply.text == "Let me see.\n```python\nprint(6*7)\n```\n```output\n42\n```\n\\boxed{42}"


@pytest.mark.parametrize(
    ("text", "rest", "ran"),
    [
        ("```python\nprint(1)\n```", {}, ["print(1)"]),  # ended by the model, the block whole
        ("```python\nprint(1)\n```\nIt printed 9.", {}, ["print(1)"]),  # a server that ignores `stop`
        ("```python\nprint(1)", {"finish_reason": "length"}, []),
        (
            "```python\nprint(1)",
            {"stop_reason": None},
            [],
        ),  # vLLM: the model ended in the middle of the block
        ("```python\nprint(1)", {"stop_reason": "\n```\n"}, ["print(1)"]),
        ("no block at all", {}, []),
    ],
)
def test_which_blocks_are_run(
    fenced: Task, sandbox: Any, text: str, rest: dict[str, Any], ran: list[str]
) -> None:
    status, body = said(text)
    body["choices"][0].update(rest)
    (reply,), _ = respond(fenced, sandbox, [(status, body), said("done")], "q")
    assert [c.program.strip() for c in reply.calls] == ran
    assert "It printed 9" not in reply.text


@pytest.mark.parametrize("stop", ["", "\n```\n"], ids=["left out", "left in, as transformers serve does"])
def test_a_block_of_another_language_is_not_the_end(fenced: Task, sandbox: Any, stop: str) -> None:
    script = [said("```text\na" + stop), said("```text\na\n```\nso \\boxed{1}", tokens=(10, 9))]
    (reply,), sent = respond(fenced, sandbox, script, "q")
    assert reply.text.endswith("\\boxed{1}")
    assert "stop" in sent[0]
    assert "stop" not in sent[1]
    assert reply.tokens == 9


def test_a_server_without_tool_calls_gets_blocks(chat_task: Task, sandbox: Any) -> None:
    def answer(path: str, payload: dict[str, Any]) -> Answer:
        if "tools" in payload:
            return 400, {"error": {"message": '"auto" tool choice requires --enable-auto-tool-choice'}}
        return said("done" if len(payload["messages"]) > 2 else "```python\nprint(2)")

    replies, sent = respond(chat_task, sandbox, answer, "q", "r", concurrency=1)
    assert [len(reply.calls) for reply in replies] == [1, 1]
    assert sum("tools" in payload for payload in sent) == 1  # asked once, then remembered
    native = replace(chat_task, tool=replace(CHAT_TOOL, style="native"))
    with pytest.raises(
        UserError, match=r"tool=native: the endpoint takes no tool calls .*enable-auto-tool-choice"
    ):
        respond(native, sandbox, answer, "q")


def test_blocks_are_asked_for_where_the_server_takes_no_calls(sandbox: Any) -> None:
    task = get_task("aime25")

    def answer(path: str, payload: dict[str, Any]) -> Answer:
        return (400, {"error": {"message": "no tools"}}) if "tools" in payload else said("\\boxed{1}")

    _, (offered, asked) = respond(task, sandbox, answer, "q")
    opening, closing = "Solve the problem step by step. ", "Put the final answer in \\boxed{}."
    assert offered["messages"][0] == {"role": "system", "content": opening + closing}
    sentence = asked["messages"][0]["content"].removeprefix(opening).removesuffix(closing)
    assert sentence.startswith(
        "You can run Python: write a block that starts with ```python and ends with ```, "
    )


def test_calls_beyond_the_limit_are_not_offered(chat_task: Task, sandbox: Any) -> None:
    once = replace(chat_task, tool=replace(CHAT_TOOL, style="fenced", max_calls=1))
    script = [said("```python\nprint(1)"), said("```python\nprint(2)\n```")]
    (reply,), sent = respond(once, sandbox, script, "q")
    assert len(reply.calls) == 1
    assert "stop" not in sent[1]


def test_examples_go_out_in_the_form_of_the_conversation(fenced: Task, sandbox: Any) -> None:
    examples = (
        {"role": "user", "content": "2*2"},
        {"role": "assistant", "content": "```python\nprint(2*2)\n```"},
        {"role": "tool", "content": "4"},
        {"role": "assistant", "content": "It is 4."},
    )
    _, sent = respond(replace(fenced, examples=examples), sandbox, [said("ok")], "q")
    roles = ["system", "user", "assistant", "user", "assistant", "user"]
    assert [m["role"] for m in sent[0]["messages"]] == roles
    assert sent[0]["messages"][3]["content"] == "```output\n4\n```"


def test_a_prompt_of_messages_is_sent_as_it_is(fenced: Task, arithmetic: Task, sandbox: Any) -> None:
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    own = [{"role": "system", "content": "Count."}, *turns]
    _, sent = respond(fenced, sandbox, [said("ok")] * 2, own, turns)
    assert sorted((payload["messages"] for payload in sent), key=str) == [
        own,
        [{"role": "system", "content": fenced.system}, *turns],
    ]
    _, (request,) = respond(
        arithmetic, sandbox, [said("ok")], turns
    )  # a conversation also in a task of bare prompts
    assert request["messages"] == turns


def test_an_unreadable_call_fails_with_the_reason(chat_task: Task, sandbox: Any) -> None:
    broken = {"id": "c", "function": {"name": "python", "arguments": '{"code": "print(1'}}
    script = [said(None, "tool_calls", tool_calls=[broken]), said("oh")]
    (reply,), sent = respond(chat_task, sandbox, script, "q")
    assert reply.calls[0].status == "error"
    assert "arguments cannot be read as JSON" in sent[1]["messages"][-1]["content"]
    (again,) = sent[1]["messages"][-2]["tool_calls"]  # in a form that a server can read again
    assert json.loads(again["function"]["arguments"]) == {"code": '{"code": "print(1'}


def test_a_program_that_hangs_is_ended_and_the_conversation_goes_on(fenced: Task, sandbox: Any) -> None:
    script = [said("```python\nwhile True: pass"), said("never mind")]
    (reply,), _ = respond(fenced, sandbox, script, "q")
    assert [c.status for c in reply.calls] == ["timeout"]
    assert (reply.error, reply.finished) == (None, True)


def test_one_failing_request_ends_its_own_conversation_only(fenced: Task, sandbox: Any) -> None:
    def answer(path: str, payload: dict[str, Any]) -> Answer:
        if payload["messages"][-1]["content"] == "bad":
            return 400, {"error": {"message": "maximum context length is 8"}}
        return said("fine")

    replies, _ = respond(fenced, sandbox, answer, "good", "bad", "good")
    assert [reply.error for reply in replies] == [None, "HTTP 400: maximum context length is 8", None]
    assert [reply.text for reply in replies] == ["fine", "", "fine"]


@pytest.mark.parametrize("trouble", [(503, {"error": "busy"}), (429, {}), (200, {"choices": []}), (200, {})])
def test_what_may_pass_is_tried_again(
    fenced: Task, sandbox: Any, monkeypatch: pytest.MonkeyPatch, trouble: Answer
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("ctpo.rollout.remote.endpoint.time.sleep", waits.append)
    script = [trouble, trouble, said("at last"), said("at last")]
    (reply,), _ = respond(fenced, sandbox, script, "q", retries=3)
    if trouble[0] == 200:
        assert "no choice" in reply.error
        return
    assert reply.text == "at last"
    assert len(waits) == 2
    assert waits[0] < waits[1]


def test_a_slow_server_is_given_up_and_counted(fenced: Task, sandbox: Any) -> None:
    import threading

    release = threading.Event()

    def answer(path: str, payload: dict[str, Any]) -> Answer:
        release.wait(5)
        return said("late")

    with serving(answer) as (url, _):
        engine = EndpointEngine(Endpoint(url, "tiny", retries=0, timeout_s=0.2))
        (reply,) = engine.respond(fenced, ["q"], SAMPLING, tools=ToolRunner(fenced.tool, sandbox), seeds=[1])
        release.set()
    assert "timed out" in reply.error or "Timeout" in reply.error


def test_endpoints_are_checked_before_work() -> None:
    served = {"data": [{"id": "one"}, {"id": "two"}]}
    with serving(lambda path, _: (200, served) if path == "/v1/models" else (404, {})) as (url, requests):
        Endpoint(url, "two").check()
        below = Endpoint(url.removesuffix("/v1"), "one", api_key="secret")
        below.check()
        assert below.url == url
        assert requests[-1][2]["Authorization"] == "Bearer secret"
        with pytest.raises(UserError, match="does not serve 'three'; name one of: one, two"):
            Endpoint(url, "three").check()
        with pytest.raises(UserError, match="/models answers HTTP 404"):
            Endpoint(url + "/elsewhere/v1", "one").check()
    with pytest.raises(UserError, match=r"endpoint http://127.0.0.1:9/v1 cannot be reached"):
        Endpoint("http://127.0.0.1:9/v1", "one").check()
    with serving(lambda *_: (401, {})) as (url, _), pytest.raises(UserError, match="refuses the key"):
        Endpoint(url, "one").check()
    with pytest.raises(UserError, match="is not a URL"):
        Endpoint("localhost:8000", "one")


@pytest.mark.parametrize(("hello", "taken"), [(200, True), (400, True), (404, False), (500, False)])
def test_a_server_that_cannot_list_its_models_is_asked_for_a_word(hello: int, taken: bool) -> None:
    """transformers' server does so if the hub's cache is missing: /models answers 500 and closes the connection."""
    hung_up: list[str] = []

    def answer(path: str, payload: dict[str, Any]) -> Answer:
        if path == "/v1/models":
            return 500, {}
        if len(hung_up) < 1:
            hung_up.append(path)
            raise ConnectionResetError
        return said("Hi") if path == "/v1/chat/completions" and hello == 200 else (hello, {})

    with serving(answer) as (url, _):
        endpoint = Endpoint(url, "one", retries=0)
        if taken:
            endpoint.check()
        else:
            with pytest.raises(UserError, match="/models answers HTTP 500; give the base URL"):
                endpoint.check()


def double(number: int) -> int:
    """Double a number.

    Args:
        number: the number
    """
    return 2 * number


async def look_up(word: str) -> str:
    """Look up a word.

    Args:
        word: the word
    """
    return f"```\n{word}: a word"


def native_call(name: str, function: str, arguments: Any) -> dict[str, Any]:
    return {"id": name, "type": "function", "function": {"name": function, "arguments": arguments}}


@pytest.fixture
def several(chat_task: Task) -> Task:
    return replace(chat_task, tools=[double, look_up])


def respond_with_tools(task: Task, sandbox: Any, script: Any) -> tuple[Any, list[Any]]:
    """The reply to one prompt, and the payloads that were sent."""
    answers = iter(script) if isinstance(script, list) else None
    with serving(lambda path, payload: next(answers) if answers else script(path, payload)) as (
        url,
        requests,
    ):
        tools = ToolRunner(task.all_tools, sandbox)
        engine = EndpointEngine(Endpoint(url, "tiny", retries=0))
        (reply,) = engine.respond(task, ["q"], SAMPLING, tools=tools, seeds=[7])
    return reply, [payload for _, payload, _ in requests]


def test_several_functions_are_offered_and_called_together(several: Task, sandbox: Any) -> None:
    made = [
        native_call("c1", "double", '{"number": 4.0}'),
        call("c2", "print(6*7)"),
        native_call("c3", "look_up", {"word": "tea"}),  # no text, as some servers send it
        native_call("c4", "double", '{"number": "four"}'),
        native_call("c5", "treble", "{}"),
        native_call("c6", "double", '{"number": '),
    ]
    script = [said("So.", "tool_calls", tool_calls=made), said("done")]
    reply, (first, second) = respond_with_tools(several, sandbox, script)
    assert [each["function"]["name"] for each in first["tools"]] == ["python", "double", "look_up"]
    assert all("return" not in each["function"] for each in first["tools"])
    assert [each.status for each in reply.calls] == ["ok", "ok", "ok", "error", "error", "error"]
    assert reply.calls[0].arguments == {"number": 4.0}
    answers = second["messages"][-6:]
    assert [each["tool_call_id"] for each in answers] == ["c1", "c2", "c3", "c4", "c5", "c6"]
    contents = [each["content"] for each in answers]
    assert contents[:3] == ["8", "42", "```\ntea: a word"]
    assert contents[3].startswith("tool call: argument 'number' is \"four\"; use a valid integer")
    assert contents[4].startswith(
        "tool call: there is no function 'treble'; call 'python' or 'double' or 'look_up'"
    )
    assert "cannot be read as JSON" in contents[5]
    for each in second["messages"][-7]["tool_calls"]:  # what is sent back can be read again
        json.loads(each["function"]["arguments"])
    # What a function returned stands in a block that it cannot leave.
    assert "\n```output\n```\ntea: a word\n```\n" not in reply.text
    assert "tea: a word\n```\n" in reply.text
    assert reply.text.endswith("done")


def test_functions_are_offered_as_blocks_to_a_server_that_refuses_tools(several: Task, sandbox: Any) -> None:
    turns = iter(
        [
            said('```tool_call\n{"name": "double", "arguments": {"number": 4}}'),
            said('```tool_call\n{"name": "double", "arguments": 4}\n```'),
            said("```python\nprint(3)"),
            said("done"),
        ]
    )

    def answer(path: str, payload: dict[str, Any]) -> Answer:
        return (400, {"error": {"message": "no tools"}}) if "tools" in payload else next(turns)

    reply, sent = respond_with_tools(several, sandbox, answer)
    assert [(each.name, each.status) for each in reply.calls] == [
        ("double", "ok"),
        ("double", "error"),
        ("python", "ok"),
    ]
    assert sent[1]["stop"] == ["\n```\n"]
    system = sent[1]["messages"][0]["content"]
    assert system.startswith(str(several.system))
    assert '"name": "look_up"' in system
    assert sent[2]["messages"][0]["content"] == system  # once, not once per turn
    assert [m["content"] for m in sent[2]["messages"][-2:]] == [
        '```tool_call\n{"name": "double", "arguments": {"number": 4}}\n```',
        "```output\n8\n```",
    ]
    assert "arguments are a number, not an object" in sent[3]["messages"][-1]["content"]
    assert reply.text.endswith("done")


def test_calls_beyond_a_functions_limit_are_refused(several: Task, sandbox: Any) -> None:
    task = replace(several, tool=None, tools=[FunctionTool(double, max_calls=1)])
    made = [native_call(f"c{i}", "double", '{"number": 1}') for i in range(2)]
    script = [said(None, "tool_calls", tool_calls=made), said("end", "tool_calls", tool_calls=made)]
    reply, (_, second) = respond_with_tools(task, sandbox, script)
    assert [each.status for each in reply.calls] == ["ok", "error"]
    assert "may not be called again" in second["messages"][-1]["content"]
    assert reply.text.endswith("end")
