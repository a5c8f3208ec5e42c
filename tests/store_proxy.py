"""A proxy before the event store that rewrites bytes, for documents that the store cannot hold.

MongoDB keeps a document as its bytes: with a name twice, with a text that is not UTF-8. The
development store keeps what Python's values hold. So a test stores a stand-in, and the proxy puts
other bytes of the same length into the answers.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

HEADER_BYTES = 4
"""A message of MongoDB's protocol begins with its length."""


@contextlib.contextmanager
def rewritten_store(
    uri: str, answers: Mapping[bytes, bytes], requests: Mapping[bytes, bytes] | None = None
) -> Iterator[str]:
    """Give the URI of a proxy that replaces bytes in the store's answers, and in the requests."""
    for old, new in [*answers.items(), *(requests or {}).items()]:
        assert len(old) == len(new), (old, new)
    place = urlsplit(uri)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        upstream = (place.hostname or "", place.port or 0)
        accepting = threading.Thread(
            target=_accept, args=(listener, upstream, answers, requests or {}), daemon=True
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
    answers: Mapping[bytes, bytes],
    requests: Mapping[bytes, bytes],
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
    answers: Mapping[bytes, bytes],
    requests: Mapping[bytes, bytes],
) -> None:
    with client, socket.create_connection(upstream) as store:
        answering = threading.Thread(target=_pump, args=(store, client, answers), daemon=True)
        answering.start()
        _pump(client, store, requests)
        answering.join()


def _pump(source: socket.socket, target: socket.socket, changes: Mapping[bytes, bytes]) -> None:
    with contextlib.suppress(OSError, EOFError):
        while True:
            header = _read(source, HEADER_BYTES)
            message = header + _read(source, int.from_bytes(header, "little") - HEADER_BYTES)
            for old, new in changes.items():
                message = message.replace(old, new)
            target.sendall(message)
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
