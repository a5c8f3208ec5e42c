"""``replay-app`` as the end-to-end tests run it."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

from secret_values import assert_no_secret

from replay_app.cli import run
from replay_app.demo.stack import outside_environment

DOCS = Path(__file__).parents[1] / "docs"


def commands_of(guide: str) -> list[list[str]]:
    """Return the arguments of each ``replay-app`` that begins a line of a document."""
    lines = (DOCS / guide).read_text().splitlines()
    return [line.split()[1:] for line in lines if line.startswith("replay-app ")]


class CommandLine:
    """Runs ``replay-app`` with some settings, in a folder without a ``.env`` file."""

    def __init__(self, environment: Mapping[str, str], folder: Path) -> None:
        self.environment = {**outside_environment(), **environment}
        self.folder = folder

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        """Start a command as a process, where the test is about the process."""
        return subprocess.Popen(
            [sys.executable, "-m", "replay_app", *arguments],
            env=self.environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> tuple[int, str]:
        """Run a command in this process; return its exit code and all that it printed."""
        output = io.StringIO()
        aiokafka = logging.getLogger("aiokafka")
        level = aiokafka.level
        with (
            patch.dict(os.environ, self.environment, clear=True),
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(output),
        ):
            try:
                code = run(arguments)
            finally:
                aiokafka.setLevel(level)  # a command that asks Kafka silences Kafka's client
        assert_no_secret(output.getvalue(), f"{arguments}")
        return code, output.getvalue()

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """Run a command, which must end with the code; return all that it printed."""
        ended, output = self.run(*arguments)
        assert ended == code, f"{arguments}: {ended}\n{output}"
        return output
