"""The settings of one architecture in a GGUF file's metadata, each value checked as it is read."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loaders.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class Settings:
    """What a file says below its architecture's name (`llama.block_count`); keys without it."""

    metadata: Mapping[str, Any]

    @property
    def prefix(self) -> str:
        """The architecture's name."""
        return str(self.metadata["general.architecture"])

    def get(self, key: str) -> Any:
        """Give a value as it is stored; None where there is none."""
        return self.metadata.get(f"{self.prefix}.{key}")

    def name(self, key: str) -> str:
        """Give a key as the file has it."""
        return f"{self.prefix}.{key}"

    def whole(self, key: str, most: int, *, least: int = 1) -> int:
        """Read a whole number. Raises CheckpointError."""
        return self._whole(key, self.get(key), most, least)

    def _whole(self, key: str, found: object, most: int, least: int) -> int:
        if type(found) is not int or not least <= found <= most:
            raise self.wrong(key, f"a whole number from {least} to {most}")
        return found

    def whole_of_every_layer(self, key: str, most: int, num_layers: int) -> int:
        """Read a whole number that may be listed for each layer. Raises LoadError.

        UnsupportedModelError where layers differ: Transformers' classes have one number for all.
        """
        found = self.get(key)
        if not isinstance(found, tuple):
            return self.whole(key, most)
        if len(found) != num_layers:
            raise CheckpointError(
                f"the GGUF metadata's {self.name(key)} lists {len(found)} layers, expected"
                f" {num_layers}"
            )
        if len(set(found)) > 1:
            raise UnsupportedModelError(
                f"the GGUF file's layers differ in {self.name(key)} ({str(found)[:60]}), which"
                f" {self.prefix} models cannot"
            )
        return self._whole(key, found[0], most, 1)

    def real(self, key: str, default: float | None = None) -> float:
        """Read a positive number. Raises CheckpointError."""
        found = self.get(key)
        if found is None and default is not None:
            return default
        if type(found) not in (int, float) or not math.isfinite(found) or found <= 0:
            raise self.wrong(key, "a positive number")
        # Stored as float32: the shortest number that rounds to it is the one that was meant.
        return float(f"{found:.7g}")

    def wrong(self, key: str, expected: str) -> CheckpointError:
        """Make the error that says what a key holds."""
        value = self.get(key)
        found = "missing" if value is None else str(value)[:60]
        return CheckpointError(
            f"the GGUF metadata's {self.name(key)} is {found}, expected {expected}"
        )
