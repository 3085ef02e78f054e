"""A real Chromium without a window, driven over its debugging pipe: no driver program, no port."""

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
_FREE_FD = 10  # our ends of the pipes get numbers above the 3 and 4 that Chromium wants


def executable() -> str | None:
    """The browser's path, or None."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Page:
    """One tab. What the page logs and what it asks the network for is kept."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session
        self.complaints: list[str] = []
        self.requests: list[str] = []

    def send(self, method: str, **params: Any) -> Any:
        return self._browser.send(method, params, self._session)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        told = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in told, told["exceptionDetails"]
        return told["result"].get("value")

    def open(self, path: Path) -> None:
        """Load a file, and wait until it says that it is drawn."""
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
        """Wait until what was changed is laid out; a tab in the background would never be."""
        self.send("Page.bringToFront")
        self.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def prefer(self, scheme: str) -> None:
        """The reader's system is light or dark."""
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
        told = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(told["data"]))
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
        """Ask, and wait for the answer; events that come before it go to their page."""
        self._last += 1
        asked = {
            "id": self._last,
            "method": method,
            "params": params,
            **({"sessionId": session} if session else {}),
        }
        told = json.dumps(asked).encode() + b"\0"
        while told:
            told = told[os.write(self._to, told) :]
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
        """A new tab."""
        target = self.send("Target.createTarget", {"url": "about:blank"})["targetId"]
        session = self.send("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        page = self._pages[session] = Page(self, session)
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.send(f"{domain}.enable")
        return page


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Chromium with a fresh profile, ended on the way out."""
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
