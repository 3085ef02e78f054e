"""A client of an OpenAI-compatible server such as vLLM, SGLang, llama.cpp or a hosted one."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar

from ctpo.errors import UserError, well_formed

_RETRIED = (408, 409, 425, 429)  # and every 5xx: another try may succeed
_LONGEST_WAIT_S = 60.0
_CONNECT_S = 10.0

T = TypeVar("T")
R = TypeVar("R")


class RequestFailed(Exception):
    """A request got no usable answer. `status` is the last HTTP status, or None without one."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


class Endpoint:
    """One model on one server.

    Args:
        url: the base URL as OpenAI's clients take it, for example `http://host:8000/v1`. If the server has nothing at
            this URL, `check` tries it with `/v1` added.
        model: the name under which the server has the model.
        api_key: sent as bearer token.
        timeout_s: how many seconds one request may take.
        retries: how often a failed request is tried again, after 1, 2, 4, … seconds or the server's Retry-After.
        concurrency: how many requests run at the same time.

    Raises:
        UserError: if the URL is not one.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 1200.0,
        retries: int = 4,
        concurrency: int = 32,
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise UserError(f"endpoint {url!r} is not a URL; write for example http://localhost:8000/v1")
        self.url, self.model = url.rstrip("/"), model
        self.concurrency, self._retries = concurrency, retries
        self._http = _http()
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._client = self._http.Client(
            headers=headers,
            timeout=self._http.Timeout(timeout_s, connect=min(_CONNECT_S, timeout_s)),
            limits=self._http.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
        )

    def check(self) -> None:
        """Check that the server answers and has the model.

        Raises:
            UserError: if it does not.
        """
        response = self._models(self.url)
        if response.status_code == 404 and not self.url.endswith("/v1"):
            below = self._models(self.url + "/v1")
            if below.status_code != 404:
                response, self.url = below, self.url + "/v1"
        if response.status_code in (401, 403):
            raise UserError(
                f"endpoint {self.url} refuses the key (HTTP {response.status_code}); name the environment variable "
                "that holds it: --api-key-env NAME"
            )
        if response.status_code != 200 and self._has_chat():
            return  # some gateways do not list their models, and transformers' server fails to
        if response.status_code != 200:
            raise UserError(
                f"endpoint {self.url}/models answers HTTP {response.status_code}; give the base URL of an "
                "OpenAI-compatible server, for example http://localhost:8000/v1"
            )
        served = _served(response)
        if served and self.model not in served:
            raise UserError(
                f"endpoint {self.url} does not serve {self.model!r}; name one of: {', '.join(served[:8])}"
            )

    def post(self, path: str, payload: dict[str, Any]) -> dict[str, Any]:
        """The server's answer to a request, which has `choices`.

        Args:
            path: below the base URL, for example `completions`.
            payload: the request's JSON object, without `model`.

        Raises:
            RequestFailed: if there is no answer after every retry, or the server refuses the request.
        """
        for attempt in range(self._retries + 1):
            answer, wait_s = self._try(path, payload)
            if not isinstance(answer, RequestFailed):
                return answer
            if wait_s is None or attempt == self._retries:
                raise answer
            # Random waits keep requests that failed together from coming back together.
            time.sleep(max(wait_s, 2.0**attempt * random.uniform(0.75, 1.25)))
        raise AssertionError("unreachable")

    def at_once(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """The results of `work` for every item, in order; `concurrency` of them run at the same time."""
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            return list(pool.map(work, items))
        except BaseException:  # after Ctrl-C, open requests would otherwise last until their timeout
            self.close()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def _models(self, url: str) -> Any:
        try:
            return self._client.get(f"{url}/models", timeout=_CONNECT_S)
        except (self._http.HTTPError, self._http.InvalidURL) as error:
            raise UserError(
                f"endpoint {url} cannot be reached ({_reason(error)}); start the server, or correct the URL"
            ) from None

    def _has_chat(self) -> bool:
        """Whether the server knows the path of chat completions."""
        hello = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        status: int | None = None
        for _ in range(2):  # a server that has just failed may have closed the connection
            answer, _wait_s = self._try("chat/completions", hello)
            if not isinstance(answer, RequestFailed):
                return True
            status = status or answer.status
        return status is not None and status < 500 and status not in (404, 405)

    def _try(self, path: str, payload: dict[str, Any]) -> tuple[dict[str, Any] | RequestFailed, float | None]:
        """The answer, or the failure with the seconds to wait before another try (None: no other try)."""
        try:
            # Not by the client's own `json=`: it cannot encode unpaired surrogates, and servers refuse them.
            text = well_formed(json.dumps({"model": self.model, **payload}, ensure_ascii=False))
            response = self._client.post(
                f"{self.url}/{path}", content=text.encode(), headers={"content-type": "application/json"}
            )
        except self._http.HTTPError as error:
            return RequestFailed(_reason(error)), 0.0
        except RuntimeError as error:  # closed by `at_once`
            return RequestFailed(str(error)), None
        if response.status_code == 200:
            try:
                answer = response.json()
                return answer if "choices" in answer else RequestFailed("the answer has no choices"), None
            except (ValueError, TypeError, RecursionError):
                return RequestFailed("the answer is not JSON"), 0.0
        failure = RequestFailed(f"HTTP {response.status_code}: {_message(response)}", response.status_code)
        if response.status_code in _RETRIED or response.status_code >= 500:
            return failure, _retry_after(response)
        return failure, None


def _http() -> Any:
    """The HTTP client that huggingface_hub installs: httpx2 with its version 2, httpx with version 1."""
    return import_module("httpx2" if find_spec("httpx2") else "httpx")


def _served(response: Any) -> list[str]:
    try:
        return [str(model["id"]) for model in response.json()["data"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        return []


def _retry_after(response: Any) -> float:
    try:
        return min(max(float(response.headers.get("retry-after", 0)), 0.0), _LONGEST_WAIT_S)
    except ValueError:  # the header may hold a date
        return 0.0


def _message(response: Any) -> str:
    try:
        body = response.json()
        error = body.get("error", body.get("detail", body))  # FastAPI's own errors have a detail
        text = error.get("message", error) if isinstance(error, dict) else error
    except (ValueError, AttributeError, RecursionError):
        text = response.text
    return " ".join(str(text).split())[:200]


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
