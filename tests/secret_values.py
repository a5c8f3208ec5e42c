"""The secrets of the tests. No output of any test may show one of them."""

from __future__ import annotations

MARK = "hush7Qz"
"""A part of every secret."""
SECRET_TOKEN = f"{MARK}-token"
SECRET_WORD = f"{MARK}-word"
"""A password of MongoDB, of SASL or of a private key."""


def assert_no_secret(text: str, where: str) -> None:
    """Fail if a text of a test's output shows a secret."""
    if MARK in text:
        place = text.index(MARK)
        shown = text[max(0, place - 200) : place + 100].replace(MARK, "[the secret]")
        raise AssertionError(f"{where} shows a secret: ...{shown}...")
