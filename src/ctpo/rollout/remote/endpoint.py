"""A client of an OpenAI-compatible server (vLLM, SGLang, llama.cpp, a hosted one): requests, retries, reasons."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar

from ctpo.errors import UserError

_RETRIED = (408, 409, 425, 429)  # and every 5xx: what may go well the next time
_LONGEST_WAIT_S = 60.0
_CONNECT_S = 10.0

T = TypeVar("T")
R = TypeVar("R")


class RequestFailed(Exception):
    """A request that got no answer; `status` is the last HTTP status, None where there was none."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.status = status


class Endpoint:
    """One model on one server.

    Args:
        url: as OpenAI's `base_url`: `http://host:8000/v1` (`/v1` is tried where the server has nothing at the URL).
        model: the name that it is served under.
        api_key: sent as bearer token.
        timeout_s: seconds one request may take.
        retries: tries after the first, 1, 2, 4, … seconds apart (or as the server's Retry-After says).
        concurrency: requests at a time.
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
        """Find out whether the server answers and has the model, before any work.

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
        if response.status_code != 200 and self._talks():
            return  # a gateway that does not list its models, or a server that fails to (transformers serve)
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
        """The server's answer.

        Raises:
            RequestFailed: if there is none after every retry, or the server refuses the request itself.
        """
        for attempt in range(self._retries + 1):
            answer, wait_s = self._try(path, payload)
            if not isinstance(answer, RequestFailed):
                return answer
            if wait_s is None or attempt == self._retries:
                raise answer
            # Jitter, so that requests that failed together do not come back together.
            time.sleep(max(wait_s, 2.0**attempt * random.uniform(0.75, 1.25)))
        raise AssertionError("unreachable")

    def at_once(self, work: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Do this for every item, as many at a time as the endpoint takes; results in order."""
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            return list(pool.map(work, items))
        except BaseException:  # Ctrl-C: what is in flight would be waited for until its timeout
            self.close()
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def close(self) -> None:
        """Give up the connections."""
        self._client.close()

    def _models(self, url: str) -> Any:
        try:
            return self._client.get(f"{url}/models", timeout=_CONNECT_S)
        except (self._http.HTTPError, self._http.InvalidURL) as error:
            raise UserError(
                f"endpoint {url} cannot be reached ({_reason(error)}); start the server, or mend the URL"
            ) from None

    def _talks(self) -> bool:
        """Whether the server knows the path that conversations go to."""
        hello = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        status: int | None = None
        for _ in range(2):  # a server that has just failed may have hung up
            answer, _wait_s = self._try("chat/completions", hello)
            if not isinstance(answer, RequestFailed):
                return True
            status = status or answer.status
        return status is not None and status < 500 and status not in (404, 405)

    def _try(self, path: str, payload: dict[str, Any]) -> tuple[dict[str, Any] | RequestFailed, float | None]:
        """The answer; or the failure and the seconds to wait before another try (None: don't)."""
        try:
            response = self._client.post(f"{self.url}/{path}", json={"model": self.model, **payload})
        except self._http.HTTPError as error:
            return RequestFailed(_reason(error)), 0.0
        except RuntimeError as error:  # closed by `at_once`
            return RequestFailed(str(error)), None
        if response.status_code == 200:
            try:
                answer = response.json()
                return answer if "choices" in answer else RequestFailed("the answer has no choices"), None
            except (ValueError, TypeError):
                return RequestFailed("the answer is not JSON"), 0.0
        failure = RequestFailed(f"HTTP {response.status_code}: {_message(response)}", response.status_code)
        if response.status_code in _RETRIED or response.status_code >= 500:
            return failure, _retry_after(response)
        return failure, None


def _http() -> Any:
    """The HTTP client that huggingface_hub brings along: httpx2 with its version 2, httpx with 1."""
    return import_module("httpx2" if find_spec("httpx2") else "httpx")


def _served(response: Any) -> list[str]:
    try:
        return [str(model["id"]) for model in response.json()["data"]]
    except (ValueError, KeyError, TypeError):
        return []


def _retry_after(response: Any) -> float:
    try:
        return min(max(float(response.headers.get("retry-after", 0)), 0.0), _LONGEST_WAIT_S)
    except ValueError:  # a date
        return 0.0


def _message(response: Any) -> str:
    try:
        body = response.json()
        error = body.get("error", body.get("detail", body))  # FastAPI's own errors have a detail
        text = error.get("message", error) if isinstance(error, dict) else error
    except (ValueError, AttributeError):
        text = response.text
    return " ".join(str(text).split())[:200]


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
