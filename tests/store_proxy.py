"""A proxy before the event store that rewrites bytes, and one that answers late.

MongoDB keeps a document as its bytes: with a name twice, with a text that is not UTF-8. The
development store keeps what Python's values hold. So a test stores a stand-in, and the proxy puts
other bytes of the same length into the answers.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from urllib.parse import urlsplit

HEADER_BYTES = 4
"""A message of MongoDB's protocol begins with its length."""


Change = Callable[[bytes], bytes]
"""Takes a message, and returns the message that goes on."""


def rewritten_store(
    uri: str, answers: Mapping[bytes, bytes], requests: Mapping[bytes, bytes] | None = None
) -> contextlib.AbstractContextManager[str]:
    """Give the URI of a proxy that replaces bytes in the store's answers, and in the requests."""
    for old, new in [*answers.items(), *(requests or {}).items()]:
        assert len(old) == len(new), (old, new)

    def rewrite(message: bytes, changes: Mapping[bytes, bytes]) -> bytes:
        for old, new in changes.items():
            message = message.replace(old, new)
        return message

    return _proxy(uri, lambda one: rewrite(one, answers), lambda one: rewrite(one, requests or {}))


def slow_store(uri: str, seconds: float, *markers: bytes) -> contextlib.AbstractContextManager[str]:
    """Give the URI of a proxy that holds each request with one of the markers back for a time.

    The other requests go on meanwhile, over other connections.
    """

    def hold(message: bytes) -> bytes:
        if any(marker in message for marker in markers):
            time.sleep(seconds)
        return message

    return _proxy(uri, lambda one: one, hold)


@contextlib.contextmanager
def _proxy(uri: str, answers: Change, requests: Change) -> Iterator[str]:
    place = urlsplit(uri)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        upstream = (place.hostname or "", place.port or 0)
        accepting = threading.Thread(
            target=_accept, args=(listener, upstream, answers, requests), daemon=True
        )
        accepting.start()
        try:
            yield f"mongodb://127.0.0.1:{listener.getsockname()[1]}/?directConnection=true"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()


def _accept(
    listener: socket.socket,
    upstream: tuple[str, int],
    answers: Change,
    requests: Change,
) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:  # the listener is closed
            return
        threading.Thread(
            target=_serve, args=(client, upstream, answers, requests), daemon=True
        ).start()


def _serve(
    client: socket.socket,
    upstream: tuple[str, int],
    answers: Change,
    requests: Change,
) -> None:
    with client, socket.create_connection(upstream) as store:
        answering = threading.Thread(target=_pump, args=(store, client, answers), daemon=True)
        answering.start()
        _pump(client, store, requests)
        answering.join()


def _pump(source: socket.socket, target: socket.socket, change: Change) -> None:
    with contextlib.suppress(OSError, EOFError):
        while True:
            header = _read(source, HEADER_BYTES)
            message = header + _read(source, int.from_bytes(header, "little") - HEADER_BYTES)
            target.sendall(change(message))
    for one in (source, target):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


def _read(source: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        part = source.recv(size - len(found))
        if not part:
            raise EOFError
        found += part
    return found
