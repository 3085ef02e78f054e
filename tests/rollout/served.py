"""A small server that speaks OpenAI's protocol, with a real model or a script behind it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = tuple[int, dict[str, Any]]


@contextmanager
def serving(answer: Callable[[str, dict[str, Any]], Answer]) -> Iterator[tuple[str, list[Any]]]:
    """Serve at a free port. Yields the base URL and the list of requests (path, payload, headers)."""
    requests: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.reply("{}")

        def do_POST(self) -> None:
            self.reply(self.rfile.read(int(self.headers["content-length"])).decode())

        def reply(self, body: str) -> None:
            requests.append((self.path, json.loads(body), dict(self.headers)))
            try:
                status, content = answer(self.path, json.loads(body))
            except ConnectionResetError:  # a server that hangs up
                self.close_connection = True
                return
            data = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", requests
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def choice(finish: str = "stop", tokens: tuple[int, int] = (10, 5), **rest: Any) -> Answer:
    """An answer with one choice. `tokens` are the counts of the prompt and of the completion."""
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}
    return 200, {"choices": [{"finish_reason": finish, **rest}], "usage": usage}


def model_behind(model: Any, tokenizer: Any) -> Callable[[str, dict[str, Any]], Answer]:
    """Greedy answers of a real model by transformers' own `generate`, without stop texts, as servers give them."""
    import torch

    lock = threading.Lock()

    def complete(prompt: str, payload: dict[str, Any]) -> tuple[str, str, tuple[int, int]]:
        ids = tokenizer.encode(prompt, add_special_tokens=False, return_tensors="pt")

        def stops(ids_BT: Any, scores: Any, **_: Any) -> Any:
            text = tokenizer.decode(ids_BT[0, ids.shape[1] :])
            return torch.tensor([any(stop in text for stop in payload.get("stop") or [])])

        with lock, torch.no_grad():
            out = model.generate(
                ids,
                max_new_tokens=payload["max_tokens"],
                do_sample=False,
                stopping_criteria=[stops],
            )[0, ids.shape[1] :].tolist()
        ended = out[-1] == tokenizer.eos_token_id
        text = tokenizer.decode(out, skip_special_tokens=True)
        for stop in payload.get("stop") or []:
            text, found, _ = text.partition(stop)
            ended = ended or bool(found)
        return text, "stop" if ended else "length", (ids.shape[1], len(out))

    def answer(path: str, payload: dict[str, Any]) -> Answer:
        if path == "/v1/models":
            return 200, {"data": [{"id": "tiny"}]}
        if path == "/v1/completions":
            text, finish, tokens = complete(payload["prompt"], payload)
            return choice(finish, tokens, text=text)
        prompt = tokenizer.apply_chat_template(
            payload["messages"], tools=payload.get("tools"), add_generation_prompt=True, tokenize=False
        )
        text, finish, tokens = complete(prompt, payload)
        return choice(finish, tokens, message={"role": "assistant", "content": text})

    return answer
