"""``replay-app verify`` and ``replay-app receipt``."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from replay_app.answers import SessionJson
from replay_app.arguments import AddCommand, add_replay_id
from replay_app.client import Client, Refused
from replay_app.exceptions import ReplayError, WrongUsage
from replay_app.exit_codes import DIFFERENT, DONE, STORE_CHANGED, UNVERIFIABLE
from replay_app.logs import silence_aiokafka
from replay_app.receipts import receipt_document, receipt_markdown
from replay_app.sessions import decode_session
from replay_app.settings import load_settings
from replay_app.start_options import add_requested_by, user_name
from replay_app.states import TERMINAL
from replay_app.terminal import say, say_json, show_claims
from replay_app.verify import obstacle, verify

if TYPE_CHECKING:
    from replay_app.verdicts import Verdict

CODES = {
    "equal": DONE,
    "different": DIFFERENT,
    "store-changed": STORE_CHANGED,
    "unverifiable": UNVERIFIABLE,
}
"""The exit code of each verdict."""
WORDS = {
    "equal": "the topics hold exactly what the replay must have published",
    "different": "THE TOPICS DIFFER from what the replay must have published",
    "store-changed": "the topics hold what the receipt counts, and the store has changed since",
    "unverifiable": "cannot be verified",
}


def add_proof_commands(add: AddCommand) -> None:
    """Add the commands to the parser."""
    verifying = add(
        "verify",
        _verify,
        "Compare the topics of a completed replay with the store, record by record",
    )
    add_replay_id(verifying)
    add_requested_by(verifying, "requested_by", user_name())
    receipt = add(
        "receipt",
        _receipt,
        "Print the receipt of an ended replay as a document to keep",
    )
    add_replay_id(receipt)
    receipt.add_argument(
        "--markdown", action="store_true", help="print Markdown, as without --json"
    )


def _verify(options: argparse.Namespace) -> int:
    client = Client.of_settings(options.url)
    found = client.replay(options.replay_id).members
    session = decode_session(json.dumps(found).encode())
    if session is None or (why := obstacle(session)) is not None:
        raise Refused(why or "there is no such session", HTTPStatus.CONFLICT, found["state"])
    silence_aiokafka()
    verdict = asyncio.run(verify(load_settings(), session, _show_progress))
    noted = _note(options, client, verdict)
    if options.json:
        say_json(_document(found, verdict, noted=noted))
    else:
        _show(options.replay_id, verdict)
    return CODES[verdict.verification.verdict]


def _show_progress(records: int) -> None:
    if sys.stderr.isatty():
        say(f"{records:,} records compared", error=True)


def _note(options: argparse.Namespace, client: Client, verdict: Verdict) -> bool:
    """Keep the verdict with the replay; return whether a worker has taken it."""
    try:
        client.note_verification(options.replay_id, verdict.verification, options.requested_by)
    except ReplayError as error:
        say(f"warning: the verdict is not kept with the replay: {error}", error=True)
        return False
    return True


def _document(session: SessionJson, verdict: Verdict, *, noted: bool) -> dict[str, Any]:
    return {
        "replay_id": session["replay_id"],
        "holds": verdict.holds,
        "checks": {
            claim: {"holds": holds, "figures": figures}
            for claim, (holds, figures) in verdict.claims.items()
        },
        "verification": verdict.verification.model_dump(mode="json"),
        "differences": [one._asdict() for one in verdict.differences],
        "noted": noted,
    }


def _show(replay_id: str, verdict: Verdict) -> None:
    found = verdict.verification
    if found.reason is not None:
        say(f"{replay_id} {WORDS[found.verdict]}: {found.reason}")
        return
    show_claims(verdict.claims)
    if verdict.differences:
        say(f"The first {len(verdict.differences):,} differences:")
    for one in verdict.differences:
        place = "" if one.topic is None else f" {one.topic}[{one.partition}]"
        place += "" if one.offset is None else f":{one.offset}"
        say(f"  {one.kind} {one.event_id!r}{place}: {one.detail}")
    speed = f"{found.records / found.seconds:,.0f} records/s" if found.seconds else "at once"
    say(f"{replay_id}: {WORDS[found.verdict]} ({speed}).")


def _receipt(options: argparse.Namespace) -> int:
    if options.json and options.markdown:
        raise WrongUsage("--markdown and --json are two forms: choose one")
    session = Client.of_settings(options.url).replay(options.replay_id).members
    if session["state"] not in TERMINAL or session["receipt"] is None:
        raise Refused(
            f"replay {options.replay_id!r} is {session['state']}: a replay has its receipt when "
            "it has ended",
            HTTPStatus.CONFLICT,
            session["state"],
        )
    document = receipt_document(session)
    if options.json:
        say_json(document)
    else:
        say(*receipt_markdown(document).rstrip("\n").split("\n"))
    return DONE
