"""Every command of docs/events.md is run, in its order, on a shop's history."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from replay_app.demo.shop import seed_store
from replay_app.demo.stack import outside_environment
from replay_app.settings import Settings

GUIDE = Path(__file__).parents[2] / "docs" / "events.md"
HISTORY = 600
SECONDS = 120.0


def test_the_guide_says_what_the_commands_do(settings: Settings, tmp_path: Path) -> None:
    mongo = settings.mongo.get_secret_value()
    seed_store(mongo, settings.mongo_database, "events", HISTORY)
    environment = {
        **outside_environment(),
        "REPLAY_MONGO": mongo,
        "REPLAY_MONGO_DATABASE": settings.mongo_database,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    blocks = re.findall(r"^```sh\n(.*?)^```$", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    outputs = [
        subprocess.run(
            ["/bin/bash", "-euo", "pipefail", "-c", block],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            check=True,
            text=True,
            timeout=SECONDS,
        ).stdout
        for block in blocks
    ]
    inspected, lines, followed, written = outputs
    assert f"about {HISTORY} events, " in inspected
    assert "order_placed" in inspected.partition("Event types")[2].splitlines()[0]
    steps = [line.split()[1] for line in followed.splitlines()]
    assert steps[:2] == ["order_placed", "order_confirmed"]
    assert len(lines.splitlines()) == len(steps)
    assert re.match(r"96 orders.ndjson", written.strip())
