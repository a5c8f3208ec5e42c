"""``python -m replay_app`` is ``replay-app``."""

from replay_app.cli import main

main()
