"""The key that is sent to the server; never taken from the command line, which `ps` shows.

Where each may come from, the first that is there: a file that an option names, `TETRAD_API_KEY`,
the file of `TETRAD_API_KEY_FILE`, `OPENAI_API_KEY`. The last is likely to be somebody else's, so it
is not sent in plain text over a network.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from service.client.address import stays_on_this_machine
from service.client.errors import WrongQuestionError
from service.errors import SettingsError
from service.settings.files import read_text_file

if TYPE_CHECKING:
    from collections.abc import Mapping

KEY_VARIABLE = "TETRAD_API_KEY"
KEY_FILE_VARIABLE = "TETRAD_API_KEY_FILE"
OPENAI_VARIABLE = "OPENAI_API_KEY"


def find_key(file: Path | None, environment: Mapping[str, str], url: str) -> str | None:
    """Return the key for a server; None where none was given. Raises WrongQuestionError."""
    if file is not None:
        return _usable(_read(file), str(file))
    if key := environment.get(KEY_VARIABLE):
        return _usable(key, KEY_VARIABLE)
    if named := environment.get(KEY_FILE_VARIABLE):
        return _usable(_read(Path(named)), KEY_FILE_VARIABLE)
    is_safe = url.startswith("https:") or stays_on_this_machine(url)
    if (key := environment.get(OPENAI_VARIABLE)) and is_safe:
        return _usable(key, OPENAI_VARIABLE)
    return None


def _read(path: Path) -> str:
    try:
        return read_text_file(path.expanduser(), "file of the key", encoding="ascii")
    except (SettingsError, UnicodeDecodeError) as error:
        raise WrongQuestionError(f"{path} holds no key: {error}") from error


def _usable(key: str, source: str) -> str:
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise WrongQuestionError(
            f"{source} holds no usable key; give printable ASCII without spaces"
        )
    return key
