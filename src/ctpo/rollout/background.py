"""An event loop in a thread of its own, for the coroutines of tools and environments."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable
from concurrent.futures import Future
from typing import Any, Final

_RESPONSIVE_S: Final = 2.0
"""How long an event loop may take to do nothing. Then something blocks it."""


class BackgroundLoop:
    """An event loop that starts when it is first needed. What a coroutine has opened on it stays usable until it ends.

    Its thread is a daemon, so a coroutine that never ends does not keep the program from ending.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._running: tuple[asyncio.AbstractEventLoop, threading.Thread] | None = None
        self._changing = threading.Lock()

    def run(self, awaitable: Awaitable[Any]) -> Future[Any]:
        """Begin to await something. Cancelling the future cancels the coroutine. Any thread may call this."""
        with self._changing:
            if self._running is None:
                loop = asyncio.new_event_loop()
                thread = threading.Thread(target=_run, args=[loop], name=self._name, daemon=True)
                thread.start()
                self._running = loop, thread
            return asyncio.run_coroutine_threadsafe(_awaited(awaitable), self._running[0])

    def is_stuck(self) -> bool:
        """Whether something blocks the loop."""
        with self._changing:
            if self._running is None:
                return False
            turned = threading.Event()
            self._running[0].call_soon_threadsafe(turned.set)
        return not turned.wait(_RESPONSIVE_S)

    def leave(self) -> threading.Thread | None:
        """End the loop, after cancelling what still runs on it. The next `run` starts another one.

        Returns:
            The thread that now ends, unless something blocks it; None if there was no loop.
        """
        with self._changing:
            if self._running is None:
                return None
            (loop, thread), self._running = self._running, None
            loop.call_soon_threadsafe(loop.stop)
            return thread


async def _awaited(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _run(loop: asyncio.AbstractEventLoop) -> None:
    """Run the loop until it is stopped, and let what still runs on it clean up."""
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
