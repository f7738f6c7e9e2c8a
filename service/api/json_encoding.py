"""JSON as it is sent: compact, with characters as they are."""

from __future__ import annotations

import json

import msgspec
from pydantic_core import to_json

encode_text = msgspec.json.Encoder().encode  # of strings: the fastest, once a token
encode_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
encode_numbers = to_json  # floats as pydantic's models write them
