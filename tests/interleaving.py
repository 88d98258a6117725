"""
Programs over one bucket that take turns, operation by operation, as a test says; any of them may be killed at any step.

Each program runs in a thread of its own that waits before every operation of the bucket until it is its turn, so that
an order of turns is all that decides what happens.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from weft_store import ObjectStore
from weft_store.port import ObjectInfo

T = TypeVar("T")
_PATIENCE_S = 30.0


class KilledError(BaseException):
    """The process of a program ends at this very operation."""


class Program:
    """
    One program: a function that is given a bucket of its own.

    Args:
        store: The bucket that all share.
        body: What it does.
    """

    def __init__(self, store: ObjectStore, body: Callable[[ObjectStore], object]) -> None:
        self.done, self.killed = False, False
        self.failure: BaseException | None = None
        self._turn, self._given_back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, args=(body, _TurnStore(store, self.wait)), daemon=True)
        self._thread.start()

    def _run(self, body: Callable[[ObjectStore], object], store: ObjectStore) -> None:
        try:
            self.wait()
            body(store)
        except KilledError:
            pass
        except BaseException as error:
            self.failure = error
        finally:
            self.done = True
            self._given_back.release()

    def wait(self) -> None:
        """Let others go on until it is our turn again."""
        self._given_back.release()
        assert self._turn.acquire(timeout=_PATIENCE_S)
        if self.killed:
            raise KilledError

    def step(self) -> None:
        """Go on to the next operation; called by the test, once the program waits."""
        assert self._given_back.acquire(timeout=_PATIENCE_S)
        if self.done:
            self._given_back.release()
            return
        self._turn.release()
        assert self._given_back.acquire(timeout=_PATIENCE_S)
        self._given_back.release()

    def kill(self) -> None:
        """End it where it stands."""
        self.killed = True
        self.step()
        self._thread.join(_PATIENCE_S)


def take_turns(
    programs: Sequence[Program], turns: Sequence[int], kills: Sequence[tuple[int, int]], check: Callable[[], None]
) -> None:
    """
    Run programs to their ends.

    Args:
        programs: Whose turns they are.
        turns: Which program goes on, turn by turn; after the last all that are left go on one after the other.
        kills: Turn and program: killed before that turn.
        check: Called after every turn.
    """
    for turn, which in enumerate(turns):
        for at, victim in kills:
            if at == turn:
                programs[victim % len(programs)].kill()
        programs[which % len(programs)].step()
        check()
    for program in programs:
        while not program.done:
            program.step()
            check()
    for program in programs:
        if program.failure is not None:
            raise program.failure


class _TurnStore:
    """A bucket whose every operation waits for its turn."""

    def __init__(self, store: ObjectStore, wait: Callable[[], None]) -> None:
        self._store, self._wait = store, wait

    def get(self, key: str, *, offset: int = 0, length: int | None = None) -> bytes:
        self._wait()
        return self._store.get(key, offset=offset, length=length)

    def get_with_info(self, key: str) -> tuple[bytes, ObjectInfo]:
        self._wait()
        return self._store.get_with_info(key)

    def info(self, key: str) -> ObjectInfo:
        self._wait()
        return self._store.info(key)

    def put(self, key: str, data: bytes, *, if_absent: bool = False, if_match: str | None = None) -> ObjectInfo:
        self._wait()
        return self._store.put(key, data, if_absent=if_absent, if_match=if_match)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self._wait()
        return iter(list(self._store.list(prefix)))

    def list_folders(self, prefix: str) -> Iterator[str]:
        self._wait()
        return iter(list(self._store.list_folders(prefix)))

    def delete(self, key: str) -> None:
        self._wait()
        self._store.delete(key)

    def presign_put(self, key: str, expires_s: int) -> str:
        return self._store.presign_put(key, expires_s)

    def __getattr__(self, name: str) -> Any:
        raise NotImplementedError(f"programs of this test do not use {name}")
