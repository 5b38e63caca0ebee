"""Posts between the workers of one synchronous piece: points to score, partial losses.

Dask moves results between tasks in 10–20 ms; inside a round that is too slow. Workers
therefore post small arrays to each other over Dask's own connections (TLS included) in
about 1 ms. Nothing here outlives a piece of rounds, and no block reads another's post:
only scorers and the publisher do.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, wait
from typing import Any

from distributed import WorkerPlugin, get_worker
from distributed.protocol.serialize import to_serialize

HANDLER = "ndcao_post"
POST_TIMEOUT_S = 30.0
MEET_TIMEOUT_S = 60.0  # for all workers of a piece to start it


class PieceAborted(RuntimeError):
    """A peer of this piece is gone; the client starts the piece again."""


class Mailbox:
    """Values by (piece, name), waited for by the piece's task thread."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], Any] = {}
        self._ended: dict[str, None] = {}
        self._changed = threading.Condition()

    def put(self, piece: str, name: str, value: Any) -> None:
        """Store a post and wake whoever waits; posts to an ended piece are dropped."""
        with self._changed:
            if piece not in self._ended:
                self._values[piece, name] = value
                self._changed.notify_all()

    def take(self, piece: str, name: str, timeout_s: float) -> Any:
        """Remove and return a post.

        Raises
        ------
        PieceAborted — if the piece is ended, or nothing came within ``timeout_s``.
        """
        self.wait(piece, [name], timeout_s, may_end=False)
        with self._changed:
            return self._values.pop((piece, name))

    def there(self, piece: str, name: str) -> bool:
        """Whether ``take`` would not wait."""
        with self._changed:
            return (piece, name) in self._values

    def wait(
        self, piece: str, names: Sequence[str], timeout_s: float, may_end: bool
    ) -> None:
        """Wait until one of some posts is there, or, if that ``may_end``, the time is.

        Raises
        ------
        PieceAborted — if the piece is ended, or nothing came in time.
        """
        with self._changed:
            found = self._changed.wait_for(
                lambda: (
                    piece in self._ended
                    or any((piece, name) in self._values for name in names)
                ),
                max(timeout_s, 0.0),
            )
            wanted = " or ".join(names)
            if piece in self._ended:
                raise PieceAborted(
                    f"piece {piece} was ended while waiting for {wanted}"
                )
            if not (found or may_end):
                raise PieceAborted(f"no {wanted} came within {timeout_s:g} s")

    def drop(self, piece: str, name: str) -> None:
        """Remove a post that nobody will take, if it is there."""
        with self._changed:
            self._values.pop((piece, name), None)

    def end(self, piece: str) -> None:
        """Drop a piece's posts and wake its waiters."""
        with self._changed:
            self._ended[piece] = None
            while len(self._ended) > 1000:
                self._ended.pop(next(iter(self._ended)))
            for key in [k for k in self._values if k[0] == piece]:
                del self._values[key]
            self._changed.notify_all()


MAILBOX = Mailbox()


async def _handle(piece: str, name: str, value: Any) -> str:
    MAILBOX.put(piece, name, value)
    return "OK"


class MailboxPlugin(WorkerPlugin):
    """Teaches every worker, also one that joins later, to take posts."""

    name = "ndcao-mailbox"

    def setup(self, worker: Any) -> None:
        """Register the handler; users' errors are told by the client alone."""
        worker.handlers[HANDLER] = _handle
        logging.getLogger("distributed.worker").addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a worker should log this: not what the client will say in a sentence."""
    failed = isinstance(record.msg, str) and record.msg.startswith("Compute Failed")
    return not (failed and "UserCodeError(" in str(record.args))


class Link:
    """One piece's connection to its peers, from inside a worker's task.

    Parameters
    ----------
    piece : str — names the piece and the attempt, so that attempts never mix.
    peers : addresses by rank.
    rank : this worker's place in ``peers``.
    timeout_s : float — longest wait for a post.
    """

    def __init__(
        self, piece: str, peers: tuple[str, ...], rank: int, timeout_s: float
    ) -> None:
        self.piece = piece
        self.peers = peers
        self.rank = rank
        self.timeout_s = timeout_s
        self._sending: list[Future[None]] = []

    def post(self, ranks: Iterable[int], name: str, value: Any) -> None:
        """Send ``value`` to some ranks; to this rank without the network.

        Returns at once. A post that fails is noticed by the next one: whoever waits for
        it is gone, or will be told by the client that the piece has ended.
        """
        others = []
        for rank in ranks:
            if rank == self.rank:
                MAILBOX.put(self.piece, name, value)
            else:
                others.append(self.peers[rank])
        self._check()
        if others:
            worker: Any = get_worker()
            sending = self._send(worker, others, name, value)
            loop = worker.loop.asyncio_loop
            self._sending.append(asyncio.run_coroutine_threadsafe(sending, loop))

    def settle(self) -> None:
        """Wait until every post has arrived."""
        wait(self._sending, POST_TIMEOUT_S)
        self._check()

    def _check(self) -> None:
        """Raise for posts that have failed, forget those that have arrived."""
        done = [sending for sending in self._sending if sending.done()]
        self._sending = [sending for sending in self._sending if not sending.done()]
        for sending in done:
            error = sending.exception()
            if isinstance(error, OSError | TimeoutError):
                raise PieceAborted(f"could not post: {error}") from error
            if error is not None:
                raise error

    async def _send(
        self, worker: Any, others: list[str], name: str, value: Any
    ) -> None:
        posts = [
            getattr(worker.rpc(address), HANDLER)(
                piece=self.piece, name=name, value=to_serialize(value)
            )
            for address in others
        ]
        await asyncio.wait_for(asyncio.gather(*posts), POST_TIMEOUT_S)

    def meet(self) -> None:
        """Wait until every peer has started the piece; abort it if one does not."""
        others = [rank for rank in range(len(self.peers)) if rank != self.rank]
        self.post(others, f"hello-{self.rank}", None)
        for rank in others:
            MAILBOX.take(self.piece, f"hello-{rank}", MEET_TIMEOUT_S)

    def take(self, name: str) -> Any:
        """Wait for a post of this piece."""
        return MAILBOX.take(self.piece, name, self.timeout_s)

    def there(self, name: str) -> bool:
        """Whether ``take`` would not wait."""
        return MAILBOX.there(self.piece, name)

    def wait(self, names: Sequence[str], timeout_s: float, may_end: bool) -> None:
        """Wait for one of some posts, and leave it there (``Mailbox.wait``)."""
        MAILBOX.wait(self.piece, names, timeout_s, may_end)

    def drop(self, name: str) -> None:
        """Remove a post that nobody will take, if it is there."""
        MAILBOX.drop(self.piece, name)


def end_piece(piece: str) -> None:
    """End a piece in this process (the client calls it on workers to abort)."""
    MAILBOX.end(piece)
