"""The choice of the page encoder: ``REPLAY_ENCODER``."""

from __future__ import annotations

import functools
import importlib.util
import logging

from replay_app.exceptions import InvalidSettings
from replay_app.pages import EncodeSpec, PageEncoder
from replay_app.python_encoder import PythonEncoder

logger = logging.getLogger(__name__)


def make_encoder(spec: EncodeSpec, choice: str) -> PageEncoder:
    """Return the encoder for a value of ``REPLAY_ENCODER``.

    Raises
    ------
    InvalidSettings
        When the choice is ``native`` and the native encoder cannot be used.

    """
    if encoder_name(choice) == "native":
        # Imported here: replay_native is optional.
        from replay_app.native_encoder import NativeEncoder  # noqa: PLC0415

        return NativeEncoder(spec)
    return PythonEncoder(spec)


def encoder_name(choice: str) -> str:
    """Return the name of the encoder, native or python, for a value of ``REPLAY_ENCODER``.

    Raises
    ------
    InvalidSettings
        When the choice is ``native`` and the native encoder cannot be used.

    """
    if choice == "python":
        return "python"
    obstacle = _native_obstacle()
    if obstacle is None:
        return "native"
    if choice == "native":
        msg = f"REPLAY_ENCODER=native: {obstacle}, or set REPLAY_ENCODER to auto or python"
        raise InvalidSettings(msg)
    return "python"


@functools.cache
def _native_obstacle() -> str | None:
    """Return why the native encoder cannot be used; None if it can."""
    if importlib.util.find_spec("replay_native") is None:
        return "the native encoder is not installed: run `make native`"
    try:
        from replay_app.native_encoder import check_interface  # noqa: PLC0415 - optional, see above

        check_interface()
    except (ImportError, InvalidSettings) as error:
        logger.warning("the native encoder is not used: %s", error)
        return str(error)
    return None
