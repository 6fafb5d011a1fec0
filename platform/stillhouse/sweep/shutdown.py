"""How a sweep is ended from outside: by Ctrl-C, by SIGTERM, or by a request that lies in its folder."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from stillhouse.errors import Interrupted

TIMEOUT_S = 10.0
"""How long work under way gets to reach a checkpoint; what takes longer has one that is no older than its last epoch."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_LOOK_S = 0.5
# A launcher such as `uv run` hands a Ctrl-C on that the terminal has sent to us as well.
_ECHO_S = 0.3
_SHOW_CURSOR = b"\x1b[?25h\n"


class ShutdownRequest:
    """Whether somebody asked the sweep to end. The first request ends it gracefully, the second at once.

    Inside `deferred` a first request is noted in `requested` and left to whoever works there; elsewhere nothing is under way
    that could be kept, and it raises `KeyboardInterrupt` in the main thread. The second request leaves the process.

    Args:
        request: the file whose appearance is a request.
        last_words: printed when the sweep is left at once.
        tell: told of a request that is heeded deferred.
    """

    def __init__(self, request: Path, *, last_words: str = "", tell: Callable[[str], None] = lambda _text: None) -> None:
        self._request = request
        self._last_words = last_words
        self._tell = tell
        self._requested_at: float | None = None
        self._deferring = False
        self._before: dict[signal.Signals, Any] = {}
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        # A request to a driver that is gone does not concern this one.
        self._request.unlink(missing_ok=True)
        self.listen()
        self._thread = threading.Thread(target=self._look, name="stillhouse-ending", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        self._request.unlink(missing_ok=True)

    @property
    def requested(self) -> bool:
        """Whether the sweep was asked to end."""
        return self._requested_at is not None

    def listen(self) -> None:
        """Takes the signals, also from a library that has taken them since; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            before = signal.signal(number, self._on_signal)
            self._before.setdefault(number, before)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Where a first request is left to the work under way.

        Raises:
            KeyboardInterrupt: it came already.
        """
        if self.requested:
            raise KeyboardInterrupt
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def check(self) -> None:
        """For a patient wait that can be left at any time.

        Raises:
            Interrupted: somebody asked.
        """
        if self.requested:
            raise Interrupted("interrupted")

    def _on_signal(self, _number: int, _frame: object) -> None:
        now = time.monotonic()
        if self._requested_at is None:
            self._requested_at = now
            if not self._deferring:
                raise KeyboardInterrupt
            # Not from here: whoever is interrupted may hold the lock that showing a text needs.
            threading.Thread(target=self._tell, args=(_GRACEFUL,), daemon=True).start()
        elif now - self._requested_at <= _ECHO_S:
            return
        elif hasattr(sys, "ps1"):
            # A notebook or a prompt must outlive its sweep.
            raise KeyboardInterrupt
        else:
            self._leave()

    def _leave(self) -> None:
        """Ends the process as a kill would, which a sweep is made for; written by hand since any lock may be held."""
        target = 2
        with suppress(OSError, ValueError):
            target = sys.stderr.fileno()
        if os.isatty(target):
            os.write(target, _SHOW_CURSOR)
        os.write(target, f"{self._last_words}\n".encode())
        os._exit(Interrupted.exit_code)

    def _look(self) -> None:
        main = threading.main_thread().ident
        while not self._over.wait(_LOOK_S):
            if self.requested or not self._request.exists():
                continue
            if self._before and main is not None:
                signal.pthread_kill(main, signal.SIGTERM)
            else:
                self._requested_at = time.monotonic()


_GRACEFUL = f"ending: trials under way get {TIMEOUT_S:.0f} s for a checkpoint; Ctrl-C again ends at once"
