"""The settings of files and batches, and where they are kept."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ByteSize, Field

Auto = Literal["auto"]
Positive = Annotated[int, Field(ge=1)]
PositiveBytes = Annotated[ByteSize, Field(ge=1)]


class BatchSettings(BaseModel):
    """What an operator can choose for what callers leave to be answered later."""

    state_dir: Path | None = Field(
        None,
        description="Folder for what must outlive the server: files and batches. One server at a "
        "time may have it. When absent, `tetrad` in the user's folder for states "
        "(XDG_STATE_HOME, else ~/.local/state).",
    )
    max_file_size: PositiveBytes = Field(
        ByteSize(100 * 1024 * 1024),
        description="Largest file that /v1/files takes; it goes to the disk as it comes.",
        json_schema_extra={"unit": "bytes"},
    )
    max_files_size: PositiveBytes = Field(
        ByteSize(2 * 1024 * 1024 * 1024),
        description="Most that all files sent to /v1/files may take together with batches' output; "
        "more are refused until some are deleted.",
        json_schema_extra={"unit": "bytes"},
    )
    max_files_size_per_caller: PositiveBytes | Auto = Field(
        "auto",
        description="Most of that which one caller's files may take, so that none fills it for all;"
        " callers are told apart by their keys. `auto` is half of max_files_size, and all of it "
        "where no key is asked for.",
        json_schema_extra={"unit": "bytes"},
    )
    max_batch_requests: Positive = Field(
        50_000, description="Most requests of a batch.", json_schema_extra={"unit": "requests"}
    )
    max_open_batches: Positive = Field(
        64,
        description="Most batches that are not over.",
        json_schema_extra={"unit": "batches"},
    )
    max_open_batches_per_caller: Positive | Auto = Field(
        "auto",
        description="Most of those that are one caller's, so that none has them all; callers are "
        "told apart by their keys. `auto` is half of max_open_batches, and all of them where no "
        "key is asked for.",
        json_schema_extra={"unit": "batches"},
    )
    max_batch_running: Positive | Auto = Field(
        "auto",
        description="Most requests of batches that are worked on at once, in their turns by batch; "
        "`auto` is 8 more than max_num_seqs, so that a slot that becomes free is taken at once.",
        json_schema_extra={"unit": "requests"},
    )

    @property
    def state_folder(self) -> Path:
        """Where what must outlive the server is kept."""
        if self.state_dir is not None:
            return self.state_dir
        base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
        return Path(base).expanduser() / "tetrad"

    @property
    def batches_folder(self) -> Path:
        """Where files and batches are kept."""
        return self.state_folder / "batches"
