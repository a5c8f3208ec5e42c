"""The exit codes of ``replay-app``. The help and docs/operations.md have the same table."""

from __future__ import annotations

DONE, FAILED, USAGE, REFUSED, NONE_REPLAYED = 0, 1, 2, 3, 4
DIFFERENT, STORE_CHANGED, UNVERIFIABLE = 5, 6, 7
COMPLETED_WITH_ERRORS, CANCELLED, NO_SUCH_REPLAY = 8, 9, 10
INTERRUPTED = 130

EXIT_CODES = {
    DONE: "done; a watched replay or chain has completed without errors",
    FAILED: "failed, not confirmed, or nobody answered; a replay of a watched chain failed",
    USAGE: "wrong usage, or wrong settings: the same again ends in the same way",
    REFUSED: "the command is refused",
    NONE_REPLAYED: "the replay completed with errors: no event could be replayed",
    DIFFERENT: "verify: the topics differ from what the replay must have published",
    STORE_CHANGED: "verify: the topics hold what was published; the store has changed since",
    UNVERIFIABLE: "verify: nothing can be compared, for example as records are deleted",
    COMPLETED_WITH_ERRORS: "the replay completed with errors: some events were left out",
    CANCELLED: "the watched replay was cancelled",
    NO_SUCH_REPLAY: "there is no such replay, or no such chain",
    INTERRUPTED: "interrupted by Ctrl-C; a replay that was watched goes on",
}
"""Each code and its meaning."""


def exit_code_lines() -> str:
    """Return the table for the help, a line for each code."""
    lines = (f"  {code:>3}  {meaning}" for code, meaning in EXIT_CODES.items())
    return "exit codes:\n" + "\n".join(lines)
