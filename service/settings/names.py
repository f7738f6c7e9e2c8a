"""What a setting is called where it is given, and which variant has a name of its own: the demo."""

from __future__ import annotations

from pathlib import Path

ENV_PREFIX = "TETRAD_"
DEMO_NAME = "demo"  # of what is served where no variant is named
CONFIG_VARIABLE = "TETRAD_CONFIG"
URL_VARIABLE = "TETRAD_URL"  # which server `tetrad chat` and `tetrad complete` ask
CLIENT_VARIABLES = frozenset({URL_VARIABLE})  # of commands that ask a server; no settings of one


def flag_of(name: str) -> str:
    """Return a setting's flag: max_num_seqs gives --max-num-seqs."""
    return "--" + name.replace("_", "-")


def variable_of(name: str) -> str:
    """Return a setting's variable: max_num_seqs gives TETRAD_MAX_NUM_SEQS."""
    return ENV_PREFIX + name.upper()


def means_demo(variant: str) -> bool:
    """Tell whether a variant's name means the demo; a local folder of that name wins."""
    return variant.strip() == DEMO_NAME and not Path(DEMO_NAME).is_dir()
