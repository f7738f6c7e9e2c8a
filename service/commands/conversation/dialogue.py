"""A dialogue: its system prompt and turns, as servers take them and as people keep them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from service.client.errors import WrongQuestionError

if TYPE_CHECKING:
    from pathlib import Path

Message = dict[str, str]
_HEADINGS = {"system": "System", "user": "You", "assistant": "Answer"}


@dataclass(slots=True)
class Dialogue:
    """The turns so far, oldest first."""

    system: str | None = None
    turns: list[Message] = field(default_factory=list)

    def messages(self) -> list[Message]:
        """Return the dialogue as the field `messages`."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        return [*system, *self.turns]

    def ask(self, text: str) -> None:
        """Add the user's turn."""
        self.turns.append({"role": "user", "content": text})

    def answer(self, text: str) -> None:
        """Add the answer, or as much of it as came; without any the question goes, too."""
        if text:
            self.turns.append({"role": "assistant", "content": text})
        else:
            self.turns.pop()

    def save(self, path: Path) -> None:
        """Write a new file: JSON if its name ends so, else markdown. Raises WrongQuestionError."""
        messages = self.messages()
        if path.suffix == ".json":
            text = json.dumps({"messages": messages}, indent=2, ensure_ascii=False) + "\n"
        else:
            parts = [f"## {_HEADINGS[turn['role']]}\n\n{turn['content']}\n" for turn in messages]
            text = "\n".join(parts)
        try:
            # For the user alone, and never over another file.
            descriptor = os.open(path.expanduser(), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise WrongQuestionError(f"{path} cannot be written: {error.strerror}") from error
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
