"""Examples in the help of each command."""

from __future__ import annotations

from collections.abc import Mapping

EXAMPLES: Mapping[str, tuple[str, ...]] = {
    "worker": (
        "replay-app worker",
        "replay-app worker --web-port 6067 --data-dir /var/lib/replay",
        "replay-app worker --processes 4",
    ),
    "start": (
        "replay-app start --event-type order_placed --prefix rebuild. --wait",
        "replay-app start --start yesterday --end today --to-topic rebuilt --rate 500",
        "replay-app start --start '2026-01-10 14:00 Europe/Berlin' --dry-run",
        "replay-app start --aggregate-id o-1 --to-original --yes",
    ),
    "plan": (
        "replay-app plan --event-type order_placed --prefix rebuild.",
        "replay-app plan --start 2h --to-topic rebuilt --json",
    ),
    "list": (
        "replay-app list",
        "replay-app list --state running --state failed --watch",
        "replay-app list --since 3d --text orders -o wide",
        "replay-app list --state completed -o name",
    ),
    "status": ("replay-app status rebuild-1", "replay-app status @last --json"),
    "describe": ("replay-app describe @last", "replay-app describe rebuild-1 --json"),
    "watch": ("replay-app watch @last", "replay-app watch rebuild-1 --json"),
    "open": ("replay-app open @last",),
    "pause": ("replay-app pause rebuild-1", "replay-app pause --chain shop"),
    "resume": ("replay-app resume @last", "replay-app resume --chain shop"),
    "step": ("replay-app step @last", "replay-app step rebuild-1 10"),
    "cancel": ("replay-app cancel rebuild-1", "replay-app cancel --chain shop --yes"),
    "retry": (
        "replay-app retry @last",
        "replay-app retry rebuild-1 --skip-event e-17",
        "replay-app retry rebuild-1 --on-error dead-letter",
    ),
    "release": ("replay-app release rebuild-1",),
    "set-rate": ("replay-app set-rate @last 500", "replay-app set-rate rebuild-1 none"),
    "verify": ("replay-app verify @last", "replay-app verify rebuild-1 --json"),
    "receipt": ("replay-app receipt rebuild-1 --markdown",),
    "redrive": (
        "replay-app redrive rebuild-1",
        "replay-app redrive rebuild-1 --event-type order_placed --dry-run",
    ),
    "apply": ("replay-app apply shop.yaml --plan", "replay-app apply shop.yaml --wait"),
    "chain": ("replay-app chain shop", "replay-app chain shop --watch"),
    "inspect": ("replay-app inspect",),
    "events": (
        "replay-app events --aggregate-id o-1",
        "replay-app events --start yesterday --event-type order_placed --out events.jsonl",
    ),
    "topics": (
        "replay-app topics --create",
        "replay-app topics --create-destinations --all --prefix rebuild.",
    ),
    "dead-letters": ("replay-app dead-letters @last", "replay-app dead-letters rebuild-1 --ids"),
    "discard": ("replay-app discard rebuild-1 --event-id e-17 --reason 'a test order'",),
    "offsets": (
        "replay-app offsets rebuild-1 --group orders-view --to handover",
        "replay-app offsets rebuild-1 --group orders-view --to begin --execute",
    ),
    "settings": ("replay-app settings", "replay-app settings --json"),
    "demo": ("replay-app demo", "replay-app demo --events 1000 --keep"),
    "completion": (
        "source <(replay-app completion bash)",
        "replay-app completion zsh > ~/.zfunc/_replay-app",
        "replay-app completion fish > ~/.config/fish/completions/replay-app.fish",
    ),
}
"""By command. A command without an example cannot be added to the parser."""


def epilog(command: str) -> str:
    """Return the examples of a command, for the end of its help."""
    return "examples:\n" + "\n".join(f"  {line}" for line in EXAMPLES[command])
