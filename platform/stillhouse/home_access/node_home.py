"""The home as a node has it: the folder itself where the node sees it, else a scratch folder and the home's keeper."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

from stillhouse.durable import write_atomic
from stillhouse.home_access.home_address import HomeAddress, scratch_folder
from stillhouse.home_access.keeper_link import KeeperLink
from stillhouse.home_access.remote_store import RemoteStore
from stillhouse.knowledge.store import KnowledgeStore


class NodeHome:
    """The home of a sweep as this node has it. Files are named by their paths under `folder`.

    Where the folder is the home itself, `pull`, `push` and `drop` have nothing to do but to remove.

    Attributes:
        folder: the home, or this node's scratch folder for it.
        store: the sealed views: the home's, or this node's own copies of them.
    """

    def __init__(self, address: HomeAddress) -> None:
        self._there = Path(address.path)
        self._keeper: KeeperLink | None = None
        if address.is_common:
            self.folder = self._there
            self.store = KnowledgeStore(self.folder / "knowledge")
            return
        assert address.keeper is not None
        self._keeper = KeeperLink(address.keeper)
        self.folder = scratch_folder(address.mark)
        self.store = RemoteStore(self.folder / "knowledge", self._keeper, max_bytes=address.max_bytes)

    def here(self, path: str | Path) -> Path:
        """Where a file of the home, by its path at the driver, lies on this node; others stay where they are."""
        path = Path(path)
        return self.folder / path.relative_to(self._there) if path.is_relative_to(self._there) else path

    def there(self, path: Path) -> Path:
        """The driver's path of a file that lies here."""
        return self._there / path.relative_to(self.folder)

    def pull(self, path: Path) -> None:
        """Brings the file from the home, if it is there; what lies here and not there is removed.

        Raises:
            InfrastructureError: the keeper does not answer.
        """
        if self._keeper is None or not path.is_relative_to(self.folder):
            return
        content = self._keeper.call("fetch", self._place(path))
        if content is None:
            path.unlink(missing_ok=True)
        else:
            write_atomic(path, content)

    def push(self, path: Path) -> None:
        """Brings the file to the home, durably.

        Raises:
            OSError: the home's disk is full.
            InfrastructureError: the keeper does not answer.
        """
        if self._keeper is not None:
            self._keeper.call("keep", self._place(path), path.read_bytes())

    def drop(self, path: Path) -> None:
        """Removes the file in the home; the caller removes its own.

        Raises:
            InfrastructureError: the keeper does not answer.
        """
        if self._keeper is not None:
            self._keeper.call("drop", self._place(path))

    @property
    def note_fill(self) -> Callable[[str], None] | None:
        """What adds a line to the home's log of fills; None where the log is a file here."""
        keeper = self._keeper
        return None if keeper is None else lambda line: keeper.call("note_fill", line)

    def _place(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


@cache
def node_home(address: HomeAddress) -> NodeHome:
    """The home in this process; one object, so that its trials share what is copied."""
    return NodeHome(address)
