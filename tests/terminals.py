"""``replay-app`` as a person runs it: on a pseudo-terminal of 80 columns."""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from typing import Self

from command_line import CommandLine
from secret_values import assert_no_secret

COLUMNS, LINES = 80, 24
REPLAY_APP = (sys.executable, "-m", "replay_app")
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal(contextlib.AbstractContextManager["Terminal"]):
    """A command on a terminal of its own; `shown` is what the terminal showed, without colours."""

    def __init__(
        self, replay_app: CommandLine, *arguments: str, command: Sequence[str] = REPLAY_APP
    ) -> None:
        self._here, there = pty.openpty()
        fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self._process = subprocess.Popen(
            [*command, *arguments],
            env={**replay_app.environment, "TERM": "xterm-256color"},
            cwd=replay_app.folder,
            stdin=there,
            stdout=there,
            stderr=there,
            start_new_session=True,
            preexec_fn=_take_terminal,  # noqa: PLW1509 - so that Ctrl-C reaches the command
        )
        os.close(there)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.raw = ""

    @property
    def shown(self) -> str:
        return _CONTROL.sub("", self.raw).replace("\r\n", "\n")

    def until(self, text: str, seconds: float = 60.0) -> Self:
        """Read until the terminal has shown a text."""
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            assert time.monotonic() < deadline, f"no {text!r} in:\n{self.shown}"
            assert self._read(1.0), f"the command ended without {text!r}:\n{self.shown}"
        return self

    def type(self, text: str) -> Self:
        """Send what a person types; "\\x03" is Ctrl-C."""
        os.write(self._here, text.encode())
        return self

    def ends(self, code: int, seconds: float = 60.0) -> str:
        """Wait for the end with a code; return all that was shown."""
        deadline = time.monotonic() + seconds
        while self._read(1.0):
            assert time.monotonic() < deadline, f"the command goes on:\n{self.shown}"
        assert self._process.wait(seconds) == code, self.shown
        assert_no_secret(self.raw, "a terminal")
        return self.shown

    def _read(self, seconds: float) -> bool:
        """Read what comes within some seconds; return False at the end."""
        ready, _, _ = select.select([self._here], [], [], seconds)
        if not ready:
            return True
        try:
            data = os.read(self._here, 65536)
        except OSError:  # Linux says so at the end of the other side
            data = b""
        self.raw += self._decoder.decode(data)
        return bool(data)

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
        os.close(self._here)


def _take_terminal() -> None:
    """Make standard input the controlling terminal of the new session."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
