"""The order of the tests, and a browser for those marked `browser`: headless Chromium, driven through its debugging pipe."""

import base64
import itertools
import json
import os
import select
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from stillhouse import methods

ARTIFACTS = Path(__file__).parent.parent / ".artifacts"
_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("STILLHOUSE_CHROMIUM") or next((found for name in _NAMES if (found := shutil.which(name))), None)
_FLAGS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
]
_TIMEOUT_S = 60.0


class Browser:
    """A headless Chromium with one page at a time. Messages on the pipe are JSON with a zero byte after each."""

    def __init__(self, profile: Path) -> None:
        to_browser, self._in = os.pipe()
        self._out, from_browser = os.pipe()
        command = shlex.join([str(CHROMIUM), *_FLAGS, f"--user-data-dir={profile}", "about:blank"])
        # The browser expects the pipe at the file descriptors 3 and 4.
        self._process = subprocess.Popen(
            ["bash", "-c", f"exec {command} 3<&{to_browser} 4>&{from_browser}"],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._numbers = itertools.count(1)
        self._left = b""
        self._context = self._session = ""
        self.console: list[str] = []

    def targets(self) -> list[dict[str, Any]]:
        return list(self.call("Target.getTargets", session=False)["targetInfos"])

    def renew(self) -> None:
        """Opens a new page that shares nothing with the previous one, and closes that one with everything it opened."""
        if self._context:
            self.call("Target.disposeBrowserContext", session=False, browserContextId=self._context)
        self._context = self.call("Target.createBrowserContext", session=False)["browserContextId"]
        page = self.call("Target.createTarget", session=False, url="about:blank", browserContextId=self._context)["targetId"]
        self._session = self.call("Target.attachToTarget", session=False, targetId=page, flatten=True)["sessionId"]
        self.console.clear()
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, *, session: bool = True, **params: Any) -> dict[str, Any]:
        """Sends a command of the DevTools protocol and waits for the response."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params} | ({"sessionId": self._session} if session else {})
        os.write(self._in, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _TIMEOUT_S
        while time.monotonic() < deadline:
            answer = self._read(deadline)
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self._note(answer)
        raise TimeoutError(method)

    def _read(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._left:
            ready, _, _ = select.select([self._out], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(self._out, 1 << 20) if ready else b""
            if not piece:
                raise TimeoutError("the browser does not answer")
            self._left += piece
        message, self._left = self._left.split(b"\0", 1)
        answer: dict[str, Any] = json.loads(message)
        return answer

    def _note(self, event: dict[str, Any]) -> None:
        if event.get("sessionId") != self._session:
            return
        params = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                self.console.append(str(params["exceptionDetails"].get("exception", params["exceptionDetails"])))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning"):
                self.console.append(" ".join(str(each.get("value", each.get("description"))) for each in params["args"]))
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                self.console.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    def open(self, address: str, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        self.size(width, height)
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=scheme)
        self.call("Page.navigate", url=address)

    def size(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str, timeout_s: float = _TIMEOUT_S) -> None:
        """Until a JavaScript expression is true."""
        deadline = time.monotonic() + timeout_s
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < deadline, f"still not true: {condition}"
            time.sleep(0.1)

    def move(self, x: float, y: float) -> None:
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, x: float, y: float) -> None:
        self.move(x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        codes = {"ArrowRight": 39, "ArrowLeft": 37, "Enter": 13, "Tab": 9}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key])

    def screenshot(self, name: str, *, whole: bool = False) -> Path:
        """A picture of the page in `.artifacts/`, which git ignores."""
        ARTIFACTS.mkdir(exist_ok=True)
        taken = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path = ARTIFACTS / f"{name}.png"
        path.write_bytes(base64.b64decode(taken["data"]))
        return path

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Runs test files that take minutes first, so that no process still runs one of them when the others are finished."""
    slow, ray = ({item.path for item in items if item.get_closest_marker(name)} for name in ("slow", "ray"))
    items.sort(key=lambda item: (item.path not in ray, item.path not in slow))


@contextmanager
def _forgets_method_folders() -> Iterator[None]:
    before = list(methods.__path__)
    yield
    if methods.__path__ != before:
        methods.__path__[:] = before
        methods.find.cache_clear()


@pytest.fixture(autouse=True, scope="module")
def _known_methods_of_a_module() -> Iterator[None]:
    """Forgets the method folders that fixtures of a whole file made known."""
    with _forgets_method_folders():
        yield


@pytest.fixture(autouse=True)
def _known_methods() -> Iterator[None]:
    """Forgets the method folders that a test made known."""
    with _forgets_method_folders():
        yield


@pytest.fixture(scope="session")
def _chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium, or its path in STILLHOUSE_CHROMIUM")
    opened = Browser(tmp_path_factory.mktemp("browser") / "profile")
    yield opened
    opened.close()


@pytest.fixture
def browser(_chromium: Browser) -> Browser:
    """A new page for each test."""
    _chromium.renew()
    return _chromium


@pytest.fixture
def middle_of() -> Callable[[Browser, str], tuple[float, float]]:
    """The centre of the element that a JavaScript expression returns, after scrolling to it."""

    def find(page: Browser, element: str) -> tuple[float, float]:
        page.run(f"{element}.scrollIntoView({{block: 'center'}})")
        time.sleep(0.2)
        box = page.run(f"(({{x, y, width, height}}) => [x + width / 2, y + height / 2])({element}.getBoundingClientRect())")
        return float(box[0]), float(box[1])

    return find
