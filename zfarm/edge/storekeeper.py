"""The thread that works in a worker's store: it does what the worker's machine wants, in order, and answers.

Small files that come together are synced and named together.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from zfarm.edge.scratch import Scratch
from zfarm.errors import FarmError
from zfarm.messages import BuildTree, DropBlob, PinBlobs, SeekBlob, StoreChunk
from zfarm.settings import Settings, settings

if TYPE_CHECKING:
    from zfarm.edge.store import Store

__all__ = ["Storekeeper"]

BATCH_MAX: Final = 512
"""Actions done before the answers are told."""
_FINAL: Final = 0
"""As zfarm.core.lacking has it."""
StoreAction: TypeAlias = SeekBlob | StoreChunk | BuildTree | DropBlob | PinBlobs


class Storekeeper:
    """One worker's store, from when it first needs one."""

    def __init__(
        self,
        root: Path | None,
        call_soon: Callable[[Callable[[], None]], None],
        hear: Callable[[str, tuple[Any, ...]], None],
        opened: Callable[[Path], None],
        limits: Settings = settings,
    ) -> None:
        """Keep files in ``root``, for all workers of this user and for later; None: in a directory that goes
        with this process. ``hear`` gets the answers, and ``opened`` where the store is before all of them;
        both are called by ``call_soon``."""
        self._root = root
        self._call_soon = call_soon
        self._hear = hear
        self._opened = opened
        self._limits = limits
        self._queue: queue.SimpleQueue[StoreAction | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._scratch: Scratch | None = None
        self._answers: list[tuple[str, tuple[Any, ...]]] = []
        self.store: Store | None = None

    def do(self, action: StoreAction) -> None:
        """Do this soon; the answer will be heard."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="zfarm-store", daemon=True)
            self._thread.start()
        self._queue.put(action)

    def close(self) -> None:
        """Do what was asked for, and let go; what nobody else needs is removed."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        try:
            while True:
                batch = [self._queue.get()]
                while len(batch) < BATCH_MAX and not self._queue.empty():
                    batch.append(self._queue.get())
                for action in batch:
                    if action is None:
                        return
                    self._do(action)
                if self.store is not None:
                    self.store.settle()
                self._tell()
        finally:
            if self.store is not None:
                self.store.close()
            if self._scratch is not None:
                self._scratch.remove()

    def _do(self, action: StoreAction) -> None:
        try:
            store = self.store or self._open()
        except (OSError, FarmError) as error:
            if not isinstance(action, DropBlob | PinBlobs):
                text = f"the worker has no store for files: {error}; "
                text += "start it with --store DIR on another disk (on an embedded farm: set TMPDIR)"
                self._answer("blob_failed", action.errand, text, _FINAL)
            return
        if isinstance(action, PinBlobs):
            store.pin(action.pin)
        else:
            store.do(action)

    def _open(self) -> Store:
        from zfarm.edge.store import Store  # most workers never need one

        root = self._root
        if root is None:
            self._scratch = self._scratch or Scratch()
            root = self._scratch.path / "store"
        lasting = self._root is not None
        self.store = Store(root, self._limits.store_bytes_max, lasting, self._answer)
        self._call_soon(lambda: self._opened(root))
        return self.store

    def _answer(self, name: str, *arguments: Any) -> None:
        self._answers.append((name, arguments))

    def _tell(self) -> None:
        answers, self._answers = self._answers, []
        if answers:
            self._call_soon(lambda: self._hear_all(answers))

    def _hear_all(self, answers: list[tuple[str, tuple[Any, ...]]]) -> None:
        for answer in answers:
            self._hear(*answer)
