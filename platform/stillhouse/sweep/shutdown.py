"""How a sweep ends before its time: requested by Ctrl-C, by SIGTERM or by a file in its folder, or because Ray died."""

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

from stillhouse.errors import InfrastructureError, Interrupted

TIMEOUT_S = 10.0
"""How long running work gets to reach a checkpoint; whatever takes longer has one of its last epoch."""

FAILURE_TIMEOUT_S = 8.0
"""How long the process gets to end by itself after a failure; then it is ended, unless a person types into it."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_POLL_INTERVAL_S = 0.5
# A launcher such as `uv run` forwards a Ctrl-C that the terminal has sent to this process as well.
_ECHO_S = 0.3
_SHOW_CURSOR = b"\x1b[?25h\n"


class ShutdownRequest:
    """Whether the sweep was requested to end. The first request ends it gracefully, the second at once.

    Inside `deferred` a first request only sets `requested`, and the work there ends by itself. Elsewhere there is no work to
    save, and the request raises `KeyboardInterrupt` in the main thread. The second request ends the process.

    A failure of what the sweep runs on (`fail`) leaves the block as an `InfrastructureError`, whatever the main thread does.

    Args:
        request: the file whose existence is a request.
        last_words: printed when the process ends at once.
        remedy: follows the reason of a failure: how to continue.
        tell: called with a sentence when a request is deferred.

    Attributes:
        before_end: called before the process ends at once, such as to end other processes.
    """

    def __init__(
        self, request: Path, *, last_words: str = "", remedy: str = "", tell: Callable[[str], None] = lambda _text: None
    ) -> None:
        self.before_end: Callable[[], None] = lambda: None
        self.remedy = remedy
        self._request = request
        self._last_words = last_words
        self._tell = tell
        self._failure: str | None = None
        self._unwound = threading.Event()
        self._requested_at: float | None = None
        self._deferring = False
        self._before: dict[signal.Signals, Any] = {}
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        # A request to an earlier driver does not apply to this one.
        self._request.unlink(missing_ok=True)
        self.listen()
        self._thread = threading.Thread(target=self._poll, name="stillhouse-shutdown", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, _type: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None) -> None:
        self._over.set()
        self._unwound.set()
        if self._thread is not None:
            self._thread.join()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()
        self._request.unlink(missing_ok=True)
        if self._failure is not None and error is not None:
            raise InfrastructureError(self._failure_message()) from error

    @property
    def failed(self) -> bool:
        """Whether `fail` was called."""
        return self._failure is not None

    def fail(self, reason: str) -> None:
        """Leaves the block with an `InfrastructureError`; returns at once. Called from a thread that watches something.

        The main thread gets `KeyboardInterrupt` until `unwinding` is called: libraries may catch one. If the block is still
        not left after a timeout, the process ends with the error's exit code.
        """
        self._failure = reason
        threading.Thread(target=self._leave, name="stillhouse-failure", daemon=True).start()

    def unwinding(self) -> None:
        """What follows only cleans up: it is not interrupted any more by a failure."""
        self._unwound.set()

    @property
    def requested(self) -> bool:
        """Whether the sweep was requested to end."""
        return self._requested_at is not None

    def listen(self) -> None:
        """Installs the signal handlers, also over those of a library; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            before = signal.signal(number, self._on_signal)
            self._before.setdefault(number, before)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A block whose work ends by itself after a first request.

        Raises:
            KeyboardInterrupt: the request came already.
        """
        if self.requested:
            raise KeyboardInterrupt
        self._deferring = True
        try:
            yield
        finally:
            self._deferring = False

    def check(self) -> None:
        """For a wait inside `deferred` that can end at any time.

        Raises:
            Interrupted: the sweep was requested to end.
        """
        if self.requested:
            raise Interrupted("interrupted")

    def _on_signal(self, _number: int, _frame: object) -> None:
        now = time.monotonic()
        if self._failure is not None:
            if not self._unwound.is_set():
                raise KeyboardInterrupt
        elif self._requested_at is None:
            self._requested_at = now
            if not self._deferring:
                raise KeyboardInterrupt
            # In another thread: the interrupted code may hold the lock that printing needs.
            threading.Thread(target=self._tell, args=(_GRACEFUL,), daemon=True).start()
        elif now - self._requested_at <= _ECHO_S:
            return
        elif hasattr(sys, "ps1"):
            # A notebook or an interactive prompt must survive its sweep.
            raise KeyboardInterrupt
        else:
            self._end_process(self._last_words, Interrupted.exit_code)

    def _leave(self) -> None:
        main, deadline = threading.main_thread().ident, time.monotonic() + FAILURE_TIMEOUT_S
        while time.monotonic() < deadline and not self._over.is_set():
            if self._before and main is not None and not self._unwound.is_set():
                signal.pthread_kill(main, signal.SIGTERM)
            self._over.wait(_POLL_INTERVAL_S)
        if not self._over.is_set() and not hasattr(sys, "ps1"):
            self._end_process(f"error: {self._failure_message()}", InfrastructureError.exit_code)

    def _failure_message(self) -> str:
        return f"{self._failure}; {self.remedy}" if self.remedy else str(self._failure)

    def _end_process(self, last_words: str, exit_code: int) -> None:
        """Ends the process like a kill, which a sweep survives; writes to the descriptor, since any lock may be held."""
        with suppress(Exception):
            self.before_end()
        target = 2
        with suppress(OSError, ValueError):
            target = sys.stderr.fileno()
        if os.isatty(target):
            os.write(target, _SHOW_CURSOR)
        os.write(target, f"{last_words}\n".encode())
        os._exit(exit_code)

    def _poll(self) -> None:
        main = threading.main_thread().ident
        while not self._over.wait(_POLL_INTERVAL_S):
            if self.requested or self.failed or not self._request.exists():
                continue
            if self._before and main is not None:
                signal.pthread_kill(main, signal.SIGTERM)
            else:
                self._requested_at = time.monotonic()


_GRACEFUL = f"stopping: running trials get {TIMEOUT_S:.0f} s to write a checkpoint; Ctrl-C again ends at once"
