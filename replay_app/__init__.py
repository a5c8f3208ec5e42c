"""Event replay on Kafka: publish stored events again, exactly once and in order."""

__version__ = "0.2.0"
