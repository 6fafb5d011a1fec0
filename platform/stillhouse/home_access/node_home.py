"""Access to the home from one node: the shared folder itself, or copies in a scratch folder through the home's keeper."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

from stillhouse.durable import write_atomic
from stillhouse.home_access.home_address import HomeAddress, scratch_folder
from stillhouse.home_access.keeper_link import KeeperLink
from stillhouse.home_access.remote_store import RemoteStore
from stillhouse.knowledge.store import KnowledgeStore


class NodeHome:
    """The home of a sweep, as this node accesses it. Files are named by their paths under `folder`.

    Where the folder is the home itself, `pull`, `push` and `drop` do nothing.

    Attributes:
        folder: the home, or this node's scratch folder for it.
        store: the sealed views: the home's, or this node's copies of them.
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
        """The path on this node of a file of the home, given its path at the driver; other paths are returned as they are."""
        path = Path(path)
        return self.folder / path.relative_to(self._there) if path.is_relative_to(self._there) else path

    def there(self, path: Path) -> Path:
        """The path at the driver of a file on this node."""
        return self._there / path.relative_to(self.folder)

    def pull(self, path: Path) -> None:
        """Copies the file from the home to this node; removes it here where the home has none.

        Raises:
            InfrastructureError: the keeper does not answer.
        """
        if self._keeper is None or not path.is_relative_to(self.folder):
            return
        content = self._keeper.call("fetch", self._name(path))
        if content is None:
            path.unlink(missing_ok=True)
        else:
            write_atomic(path, content)

    def push(self, path: Path) -> None:
        """Copies the file to the home, durably.

        Raises:
            OSError: the home's disk is full.
            InfrastructureError: the keeper does not answer.
        """
        if self._keeper is not None:
            self._keeper.call("keep", self._name(path), path.read_bytes())

    def drop(self, path: Path) -> None:
        """Removes the file in the home; the caller removes its copy.

        Raises:
            InfrastructureError: the keeper does not answer.
        """
        if self._keeper is not None:
            self._keeper.call("drop", self._name(path))

    @property
    def note_fill(self) -> Callable[[str], None] | None:
        """The function that adds a line to the home's log of fills; None where this process can write the log itself."""
        keeper = self._keeper
        return None if keeper is None else lambda line: keeper.call("note_fill", line)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


@cache
def node_home(address: HomeAddress) -> NodeHome:
    """The home in this process: one object for each address, so that trials share its copies."""
    return NodeHome(address)
