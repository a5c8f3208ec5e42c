"""Event replay on Kafka: send a part of the stored history again, exactly once, in order."""

__version__ = "0.2.0"
