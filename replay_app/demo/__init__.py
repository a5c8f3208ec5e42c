"""What the demo, the tests and the benchmarks run on: servers, and a history to replay."""
