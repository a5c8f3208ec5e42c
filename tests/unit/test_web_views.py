"""What the views need of Faust."""

from __future__ import annotations

from replay_app.app import create_app
from replay_app.settings import Settings


def test_a_replay_is_routed_by_the_bytes_that_its_records_have_as_key() -> None:
    app = create_app(Settings())
    router, table = app.router, app.tables["sessions"]
    assert router._get_serialized_key(table, "rebuild-1") == b"rebuild-1"  # type: ignore[attr-defined]


def test_the_table_has_as_many_partitions_as_the_topics() -> None:
    app = create_app(Settings(partitions=5))
    assert app.tables["sessions"].partitions == 5
