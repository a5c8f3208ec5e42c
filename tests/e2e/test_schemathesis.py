"""Schemathesis with all checks: what /openapi.json says is true, whatever a client sends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from secret_values import SECRET_TOKEN, assert_no_secret
from workers import Cluster, Worker

CONFIG = Path(__file__).parents[2] / "schemathesis.toml"
SEED = 1
EXAMPLES = 3
SECONDS = 20
"""The tests of one worker end after this time at the latest."""


def test_the_description_is_true_with_and_without_a_token(cluster: Cluster) -> None:
    # The destination topics do not exist, so no generated start publishes anything.
    cluster.insert([{"_id": 1, "event_type": "placed", "topic": "not-there"}])
    worker = cluster.start_worker().wait_until_ready()
    _run(worker, cluster.folder)
    worker.terminate()
    guarded = {"REPLAY_API_TOKEN": SECRET_TOKEN, "REPLAY_WEB_HOST": "127.0.0.1"}
    worker = cluster.start_worker(0, **guarded).wait_until_ready()
    _run(worker, cluster.folder, f"Authorization: Bearer {SECRET_TOKEN}")
    assert "Traceback" not in worker.log.read_text()


def _run(worker: Worker, folder: Path, *headers: str) -> None:
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG)),
            *("run", f"{worker.url}/openapi.json", "--checks", "all", "--no-color"),
            *("--seed", str(SEED), "--generation-deterministic", "--no-shrink"),
            *("--max-examples", str(EXAMPLES), "--max-time", str(SECONDS)),
            *("--request-timeout", "20", "--continue-on-failure", "--warnings", "off"),
            *(part for header in headers for part in ("--header", header)),
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=10 * SECONDS,
    )
    output = ended.stdout + ended.stderr
    assert_no_secret(output, "schemathesis")
    assert ended.returncode == 0, output[-8000:]
    assert "Tested: " in output
