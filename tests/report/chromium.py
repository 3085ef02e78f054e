"""A real Chromium without a window, controlled over its debugging pipe, without a driver program or a port."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *(
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-extensions",
    ),
    *("--disable-dev-shm-usage", "--force-color-profile=srgb", "--remote-debugging-pipe"),
)
_PATIENCE_S = 60.0
_FREE_FD = 10  # our ends of the pipes must not take the numbers 3 and 4, which Chromium needs


def executable() -> str | None:
    """Return the path of the browser, or None if there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab. It keeps what the page logs and which addresses it requests."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        self.complaints: list[str] = []
        self.requests: list[str] = []

    def send(self, method: str, **params: Any) -> Any:
        return self._browser.send(method, params, self._session)

    def evaluate(self, expression: str) -> Any:
        """Return the value of a JavaScript expression, or what its promise resolves to."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def open(self, path: Path) -> None:
        """Load a file, and wait until the page is drawn."""
        self.send("Page.navigate", url=path.as_uri())
        until = time.monotonic() + _PATIENCE_S
        while not self.evaluate(
            "document.documentElement?.dataset.drawn !== undefined && document.readyState === 'complete'"
        ):
            assert time.monotonic() < until, f"{path} was not drawn; {self.complaints}"
            time.sleep(0.05)

    def size(self, width: int, height: int, *, phone: bool = False) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        self.settle()

    def settle(self) -> None:
        """Wait until changes are laid out. The tab must be in front; a browser does not lay out others."""
        self.send("Page.bringToFront")
        self.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def prefer(self, scheme: str) -> None:
        """Let the reader's system prefer `light` or `dark`."""
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def point(self, selector: str, *, across: float = 0.5, down: float = 0.5) -> None:
        """Move the pointer over an element."""
        self.evaluate(
            f"document.querySelector({selector!r}).scrollIntoView({{block: 'center', behavior: 'instant'}})"
        )
        self.settle()
        box = self.evaluate(
            f"(({{x, y, width, height}}) => [x, y, width, height])"
            f"(document.querySelector({selector!r}).getBoundingClientRect())"
        )
        x, y = box[0] + across * box[2], box[1] + down * box[3]
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.settle()

    def screenshot(self, path: Path, *, whole: bool = False) -> Path:
        answer = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(answer["data"]))
        return path

    def heard(self, event: dict[str, Any]) -> None:
        method, params = event["method"], event["params"]
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.complaints.append(json.dumps(params["args"]))
        elif method == "Log.entryAdded":
            self.complaints.append(params["entry"]["text"])


class Browser:
    """One browser process."""

    def __init__(self, process: subprocess.Popen[bytes], to: int, come: int) -> None:
        self._process, self._to, self._come = process, to, come
        self._last, self._rest = 0, b""
        self._pages: dict[str, Page] = {}

    def send(self, method: str, params: dict[str, Any], session: str | None = None) -> Any:
        """Send a request, and return its answer. Events that arrive before it go to their page."""
        self._last += 1
        request = {
            "id": self._last,
            "method": method,
            "params": params,
            **({"sessionId": session} if session else {}),
        }
        unsent = json.dumps(request).encode() + b"\0"
        while unsent:
            unsent = unsent[os.write(self._to, unsent) :]
        while True:
            message = self._receive()
            if message.get("id") == self._last:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            if page := self._pages.get(message.get("sessionId", "")):
                page.heard(message)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._come], [], [], _PATIENCE_S)
            part = os.read(self._come, 1 << 20) if ready else b""
            assert part, f"Chromium has left (exit code {self._process.poll()})"
            self._rest += part
        message, self._rest = self._rest.split(b"\0", 1)
        return dict(json.loads(message))

    def page(self) -> Page:
        """Open a new tab."""
        target = self.send("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.send("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.send(f"{domain}.enable")
        return page


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start Chromium with a new profile, and end it when the block ends."""
    path = executable()
    assert path is not None
    ends = [fcntl.fcntl(fd, fcntl.F_DUPFD, _FREE_FD) for pair in (os.pipe(), os.pipe()) for fd in pair]
    read_by_it, to, come, written_by_it = ends
    command = [
        "bash",
        "-c",
        f'exec "$0" "$@" 3<&{read_by_it} 4>&{written_by_it}',
        path,
        *_FLAGS,
        f"--user-data-dir={profile}",
    ]
    process = subprocess.Popen(
        command, pass_fds=(read_by_it, written_by_it), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, env={**os.environ, "XDG_CONFIG_HOME": str(profile), "XDG_CACHE_HOME": str(profile)},
    )  # fmt: skip
    os.close(read_by_it)
    os.close(written_by_it)
    try:
        yield Browser(process, to, come)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(to)
        os.close(come)
