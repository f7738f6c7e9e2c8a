"""What a setting is called where it is given: as a flag, and as an environment variable."""

from __future__ import annotations

ENV_PREFIX = "TETRAD_"
CONFIG_VARIABLE = "TETRAD_CONFIG"
URL_VARIABLE = "TETRAD_URL"  # which server `tetrad chat` and `tetrad complete` ask
CLIENT_VARIABLES = frozenset({URL_VARIABLE})  # of commands that ask a server; no settings of one


def flag_of(name: str) -> str:
    """Return a setting's flag: max_num_seqs gives --max-num-seqs."""
    return "--" + name.replace("_", "-")


def variable_of(name: str) -> str:
    """Return a setting's variable: max_num_seqs gives TETRAD_MAX_NUM_SEQS."""
    return ENV_PREFIX + name.upper()
