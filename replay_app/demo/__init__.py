"""The demo, and what tests and benchmarks share with it: servers and a history to replay."""
