"""Moments of the past beside a running volume: opened when first asked for, closed when nobody does any more.

Each has an index of its own, filled by replay and thrown away; frames are read, and kept, by the reader of
the volume. Invariants:
- VIEWS_MAX are open or being opened. One that is needed beyond takes the place of the one that was not used
  for the longest time, never of one with open files.
- A view may go at any time else: its inodes have the same numbers when it is opened again, so that it does
  not matter what the kernel remembers of it.
- Nobody but who asks for a view waits for its opening, and its work leaves room for other requests.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from mirrorfs.engine.giving_way import GiveWay
from mirrorfs.engine.lasting import place_of
from mirrorfs.engine.local import World
from mirrorfs.engine.moment import Moment
from mirrorfs.engine.namespace import Namespace
from mirrorfs.engine.past import index_at
from mirrorfs.engine.reader import Reader
from mirrorfs.engine.restore_plan import Planner
from mirrorfs.engine.space import SpaceGuard
from mirrorfs.engine.state import VolumeState
from mirrorfs.errors import MirrorfsError, NoEntry, NoSpaceLeft, ReadFailed, UsageError, ViewsBusy
from mirrorfs.format.kdf import VolumeKeys
from mirrorfs.ports import Index, IndexFiles, Store

logger = logging.getLogger(__name__)

VIEWS_MAX: Final = 4
"""Each takes memory for the caches of an index, and the index on the disk."""
IDLE_S: Final = 300.0
LOOK_S: Final = 30.0
FAILED_S: Final = 10.0
"""So soon what could not be opened is tried again."""
WAITING_MAX: Final = 16
"""Requests that wait for views: each keeps a worker of the mount busy."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where a running volume lies, as it is now."""

    world: World
    keys: Callable[[], VolumeKeys]
    writer_key: bytes
    """Ed25519 public key, 32 bytes."""
    stores: Callable[[], Sequence[Store]]
    files: Callable[[int], IndexFiles]
    """Of a new index with this number, under a key of its own."""


@dataclass(slots=True, eq=False)
class PastView:
    """One moment, being opened, open or failed."""

    files: IndexFiles
    used_s: float
    opened: trio.Event = field(default_factory=trio.Event)
    index: Index | None = None
    error: MirrorfsError | None = None
    _reading: tuple[Namespace, Reader] | None = None

    def set_open(self, index: Index, tree: Namespace, reader: Reader) -> None:
        """It can be read."""
        self.index = index
        self._reading = (tree, reader)

    @property
    def tree(self) -> Namespace:
        """Names and attributes, of an open one."""
        assert self._reading is not None
        return self._reading[0]

    @property
    def reader(self) -> Reader:
        """Contents, of an open one."""
        assert self._reading is not None
        return self._reading[1]


class PastViews:
    """Those of one session."""

    def __init__(self, sources: Sources, present: Index, reader: Reader, space: SpaceGuard) -> None:
        """`present` and `reader`: of the running volume."""
        self.present = present
        """What the volume is now."""
        self._sources = sources
        self._reader = reader
        self._space = space
        self._views: dict[int, PastView] = {}
        self._open_files: dict[int, int] = {}
        self._count = 0
        self._waiting = 0
        self._nursery: trio.Nursery | None = None
        self._ended = trio.Event()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Open and close views until `close`, or cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                while True:
                    await trio.sleep(LOOK_S)
                    self._close_idle()
        finally:
            # Requests of who still waits find it closed.
            self._nursery = None
            with trio.CancelScope(shield=True):
                for view in self._views.values():
                    await self._discard(view)
            self._views.clear()
            self._ended.set()

    async def close(self) -> None:
        """Close all views and remove their files; no request may come any more."""
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()
            await self._ended.wait()

    async def get(self, number: int, moment: Moment) -> PastView:
        """The view of a moment, open; it stays so until the next await, or as long as it has open files.

        Raises: ViewsBusy. NoEntry: there is no such moment. NoSpaceLeft: of the local disk. ReadFailed: the
            log cannot be followed up to there, or not now; the log of the mount says why.
        """
        while True:
            view = self._views.get(number)
            if view is None:
                view = self._begin(number, moment)
            view.used_s = trio.current_time()
            if view.opened.is_set():
                break
            # Once it is open it may have to go before this task has its turn: then it is opened again.
            await self._wait(view)
        if view.error is not None:
            raise type(view.error)(*view.error.args)
        return view

    async def _wait(self, view: PastView) -> None:
        if self._waiting >= WAITING_MAX:
            raise ViewsBusy("too many requests wait for the past")
        self._waiting += 1
        try:
            await view.opened.wait()
        finally:
            self._waiting -= 1

    def is_open(self, number: int) -> bool:
        """Whether nobody has to wait for it."""
        view = self._views.get(number)
        return view is not None and view.opened.is_set()

    def opened(self, number: int) -> None:
        """A file or directory of an open view was opened."""
        self._open_files[number] = self._open_files.get(number, 0) + 1

    def released(self, number: int) -> None:
        """It was closed."""
        left = self._open_files.get(number, 0) - 1
        if left > 0:
            self._open_files[number] = left
        else:
            self._open_files.pop(number, None)
        if (view := self._views.get(number)) is not None:
            view.used_s = trio.current_time()

    # --- opening -----------------------------------------------------------------------------

    def _begin(self, number: int, moment: Moment) -> PastView:
        if self._nursery is None:
            raise ReadFailed("the volume is being unmounted")
        self._check_space()
        if len(self._views) >= VIEWS_MAX:
            self._make_room(self._nursery)
        self._count += 1
        view = self._views[number] = PastView(self._sources.files(self._count), trio.current_time())
        self._nursery.start_soon(self._open, view, moment)
        return view

    def _make_room(self, nursery: trio.Nursery) -> None:
        unused = [number for number in self._views if self._is_unused(number)]
        if not unused:
            raise ViewsBusy("all moments that can be open are in use")
        number = min(unused, key=lambda number: self._views[number].used_s)
        nursery.start_soon(self._discard, self._views.pop(number))

    def _is_unused(self, number: int) -> bool:
        return self._views[number].opened.is_set() and number not in self._open_files

    def _check_space(self) -> None:
        if self._space.soft():
            raise NoSpaceLeft("the local disk is full")

    async def _open(self, view: PastView, moment: Moment) -> None:
        try:
            await self._fill(view, moment)
        except NoSpaceLeft as exc:
            view.error = exc
        except UsageError:
            view.error = NoEntry("the volume had no commit yet at that moment")
        except MirrorfsError as exc:
            logger.warning("A moment of the past could not be opened: %s", exc)
            view.error = ReadFailed("the moment could not be opened")
        except Exception as exc:  # noqa: BLE001 - the volume itself goes on: nothing of it was touched
            logger.error("A moment of the past could not be opened, unforeseen: %s", place_of(exc))
            view.error = ReadFailed("the moment could not be opened")
        finally:
            if view.index is None and view.error is None:
                view.error = ReadFailed("the volume is being unmounted")
            view.opened.set()

    async def _fill(self, view: PastView, moment: Moment) -> None:
        sources, world = self._sources, self._sources.world
        planner = Planner(
            list(sources.stores()), view.files, world.offload, sources.keys(), sources.writer_key,
            on_progress=lambda *_: self._check_space(), on_loaded=lambda *_: self._check_space(),
            disk=world.disk, pause=GiveWay(),
        )  # fmt: skip
        index, _ = await index_at(planner, moment)
        state = VolumeState(index, world.clock, read_only=True)
        view.set_open(index, Namespace(state, self._space), self._reader.beside(state))

    # --- closing -----------------------------------------------------------------------------

    def _close_idle(self) -> None:
        assert self._nursery is not None
        for number, view in list(self._views.items()):
            limit_s = IDLE_S if view.error is None else FAILED_S
            if self._is_unused(number) and trio.current_time() - view.used_s >= limit_s:
                self._nursery.start_soon(self._discard, self._views.pop(number))

    async def _discard(self, view: PastView) -> None:
        """Close a view and remove its files."""
        try:
            if view.index is not None:
                view.index.close()
            with trio.CancelScope(shield=True):
                await self._sources.world.offload.run(view.files.remove)
        except MirrorfsError as exc:
            logger.warning("The index of a moment of the past was not removed: %s", exc)
