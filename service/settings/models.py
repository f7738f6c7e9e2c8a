"""Every setting of the server, once: its name, default, unit and meaning.

The flags of `tetrad serve`, the `TETRAD_…` variables, the keys of the YAML file and
docs/configuration.md all derive from `Settings`. What a value means for the model or the engine is
decided where those are put together, in `service.worker.build` and `service.worker.sizing`.
"""

from __future__ import annotations

import ipaddress
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    SecretStr,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from engine.transport.backlog import QueueLimits
from loaders.memory.engine_defaults import GPU_SHARE, MAX_NUM_SEQS
from service.settings.batch_settings import Auto, BatchSettings, Positive, PositiveBytes
from service.settings.names import ENV_PREFIX, means_demo

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

T = TypeVar("T")
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


def _read_entries(entries: object) -> object:
    """Read a list from a variable: JSON, or entries with spaces between."""
    if not isinstance(entries, str):
        return entries
    return json.loads(entries) if entries.lstrip().startswith("[") else entries.split()


def _check_name(name: str) -> str:
    """Refuse a name that nobody could type or read in a list."""
    if not name.isprintable() or name != name.strip():
        raise ValueError("give printable characters alone, with no space at either end")
    return name


def _unless_demo(variant: str | None) -> str | None:
    """Return None for the demo, as where nothing is named."""
    return None if variant is not None and means_demo(variant) else variant


ModelName = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_check_name)]


class VariantSettings(BaseModel):
    """What an operator can choose for one served variant."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    # What is served
    variant: Annotated[str | None, AfterValidator(_unless_demo)] = Field(
        None,
        description="What to serve: `repo`, `repo:branch`, `repo@commit`, `repo/file.gguf`, "
        "`repo:Q4_K_M`, a folder, a git clone or a `.gguf` file. Where the branch is left open, "
        "the one that fits best. The embedded demo when absent, or for `demo`.",
    )
    served_model_name: ModelName | None = Field(
        None,
        description="Name clients send as `model`. The variant's own name when absent.",
    )
    aliases: Annotated[list[ModelName], NoDecode, BeforeValidator(_read_entries)] = Field(
        [],
        max_length=64,
        description="Other names that clients may send as `model`; answers carry the served name.",
    )
    chat_template: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        description="Chat template instead of the tokenizer's own: the path of a `.jinja` file, the"
        " name of another of the tokenizer's templates, or a family's: `llama-2`, `codellama-70b`,"
        " `chatml`, `mistral`, `deepseek-coder`, `alpaca`. Not inherited by further variants.",
    )
    infill_order: Literal["auto", "psm", "spm"] = Field(
        "auto",
        description="Which part a prompt with a gap begins with: the prefix (`psm`), the suffix "
        "(`spm`), or what the family was trained with first. Not inherited by further variants.",
    )
    device: str = Field(
        "auto",
        description="Where the weights go: `auto` (a GPU if there is one), `cpu`, `cuda:0`.",
    )
    dtype: str = Field(
        "auto",
        description="Type of what is not quantised: `auto`, `float32`, `bfloat16` or `float16`.",
    )
    backend: str = Field(
        "auto",
        description="Kernels of the quantised layers: `auto`, or one by name, such as `reference`.",
    )
    cpu_kernel_choice: Literal["measured", "fixed"] = Field(
        "measured",
        description="Which of several ways a CPU multiplies with quantised weights, and from how "
        "many rows on: what is fastest when tried on this machine (`measured`: up to 3 s at the "
        "first start, for large models at some more; then kept in the cache folder), or what "
        "constants say (`fixed`). Part of `system_fingerprint`; with `batch_invariant` always "
        "`fixed`.",
    )
    step_kernels: Literal["auto", "triton", "torch"] = Field(
        "auto",
        description="Kernels of what a step computes between its linear layers, on a GPU: `triton`,"
        " `torch`, or the first of these that can run there (`auto`). A CPU has layers of its own.",
    )
    cpu_kernels: Literal["auto", "native", "torch"] = Field(
        "auto",
        description="What a CPU computes with: kernels that are compiled at setup (`native`, on a "
        "CPU with AVX-512, bf16 and VBMI), PyTorch's own (`torch`), or the first of these that can "
        "run there (`auto`). `batch_invariant` takes PyTorch's; on a GPU it has no effect.",
    )
    enforce_eager: bool | Auto = Field(
        "auto",
        description="Run every step as it comes instead of replaying recorded ones (CUDA graphs); "
        "`auto` records on a GPU, unless that fails its test. `true` starts faster, takes less "
        "memory and answers slower.",
    )
    cpu_offload: bool = Field(
        False,
        description="Let the CPU hold, and multiply with, the weights that one GPU has no room "
        "for. Slow: every token waits for the CPU's share of the layers.",
    )
    verify: Literal["changed", "always", "never"] = Field(
        "changed",
        description="When files are compared with the hashes that are known of them: the first "
        "time and whenever size, time or inode `changed`, `always`, or `never`. A damaged file is "
        "named, and not served.",
    )
    # How much of it runs at once
    max_model_len: Positive | Auto = Field(
        "auto",
        description="Longest prompt and answer together; `auto` is what the model was made for.",
        json_schema_extra={"unit": "tokens"},
    )
    max_num_seqs: Positive = Field(
        MAX_NUM_SEQS,
        description="Sequences that run together.",
        json_schema_extra={"unit": "sequences"},
    )
    max_num_batched_tokens: Positive | Auto = Field(
        "auto",
        description="Most tokens that one step computes; longer prompts are read in several, and "
        "others' answers wait for no more than one of them. `auto` is 512 on a CPU, 2048 on a GPU.",
        json_schema_extra={"unit": "tokens"},
    )
    max_queued_seqs: Positive = Field(
        128,
        description="Sequences that may wait to begin; more are answered 429.",
        json_schema_extra={"unit": "sequences"},
    )
    max_queued_tokens: Positive | Auto = Field(
        "auto",
        description="Prompt tokens that may wait; `auto` follows from max_queue_wait_s and the "
        "speed at which prompts are read.",
        json_schema_extra={"unit": "tokens"},
    )
    max_queue_wait_s: Seconds = Field(
        60,
        description="Longest wait that a new request is let in for, where max_queued_tokens is "
        "`auto`.",
        json_schema_extra={"unit": "seconds"},
    )
    prefix_cache: bool = Field(
        True,
        description="Keep what was computed for a prompt, for others that begin alike.",
    )
    num_speculative_tokens: int = Field(
        0,
        ge=0,
        le=32,
        description="Most tokens guessed ahead from what an answer repeats, and verified in one "
        "step; 0 guesses none. Answers stay the same.",
        json_schema_extra={"unit": "tokens"},
    )
    batch_every_steps: Positive = Field(
        64,
        description="Beside other requests, those of batches take part in one of so many steps; "
        "alone they take part in all. Below 20 the others' slowest 5 % of tokens show it.",
        json_schema_extra={"unit": "steps"},
    )
    kv_cache_size: PositiveBytes | Auto = Field(
        "auto",
        description="Memory for keys and values, as in `2GiB`; `auto` follows from what is free.",
        json_schema_extra={"unit": "bytes"},
    )
    kv_cache_dtype: Literal["auto", "float32", "float16", "bfloat16", "fp8"] = Field(
        "auto",
        description="What keys and values are kept in; `auto` is float32 on a CPU, the model's "
        "own type on a GPU. `fp8` halves a half type's memory and costs some precision.",
    )
    gpu_memory_utilization: float = Field(
        GPU_SHARE,
        gt=0,
        le=1,
        description="Share of a GPU's memory that weights and KV cache may take together; "
        "less where steps need more than the rest.",
        json_schema_extra={"unit": "share"},
    )
    batch_invariant: bool = Field(
        False,
        description="Compute every token in an order that does not depend on what else runs: "
        "answers are then the same to the last bit alone and in company. Costs much speed.",
    )
    num_threads: Positive | Auto = Field(
        "auto",
        description="Threads of one operation on the CPU; `auto` is the number of physical cores, "
        "and fewer while other processes keep those busy, so that answers may then differ in "
        "places. A number is kept whatever else runs, and the answers with it.",
        json_schema_extra={"unit": "threads"},
    )
    thread_wait: Literal["spin", "sleep"] = Field(
        "spin",
        description="What such threads do until the next operation: `spin` for a moment, which is "
        "fastest where they have a core each, or `sleep` at once, which helps where `num_threads` "
        "is given and others want the cores. Without effect on an engine `in_process`, where "
        "`OMP_WAIT_POLICY` in the server's environment says so.",
    )

    # What is done where it cannot be loaded so
    prefer: Literal["quality", "speed", "memory"] = Field(
        "quality",
        description="What counts most where the branch is left open: `quality`, `speed` or "
        "`memory`.",
    )
    users: Positive = Field(
        1,
        description="How many sequences of `max_model_len` (at most 4096 tokens where that is "
        "`auto`) a branch must have room for at once to be chosen, where it is left open.",
        json_schema_extra={"unit": "sequences"},
    )
    strict: bool = Field(
        False,
        description="Fail where a variant cannot be loaded as asked, instead of trying another "
        "kernel, a shorter context or, where it is left open, another branch; and where its files "
        "seem to have been read wrongly, instead of marking it `suspect`.",
    )

    # How it is kept running
    on_demand: bool = Field(
        False,
        description="Load the variant with the first request for it, not at the start.",
    )
    idle_unload_s: Seconds | None = Field(
        None,
        description="Unload the variant after so long without a request; never when absent. "
        "With `on_demand` the next request loads it again; without it stays unloaded, and a server "
        "that requires it is not ready.",
        json_schema_extra={"unit": "seconds"},
    )
    required: bool = Field(
        True,
        description="The server is ready only while this variant serves; "
        "without effect on one that is loaded on demand.",
    )
    step_deadline_s: Seconds = Field(
        60,
        description="An engine whose step takes longer, or that is not heard of for so long, "
        "is ended and started again.",
        json_schema_extra={"unit": "seconds"},
    )
    load_deadline_s: Seconds = Field(
        1800,
        description="An engine whose loading tells of no progress for so long is ended and started "
        "again.",
        json_schema_extra={"unit": "seconds"},
    )
    max_restarts: Annotated[int, Field(ge=0)] = Field(
        5,
        description="How often an engine is started again without a minute of health between.",
        json_schema_extra={"unit": "times"},
    )


def unless_auto(value: T | Auto) -> T | None:
    """Give a setting's value; None where it is left to follow from the rest."""
    return None if value == "auto" else value


class WorkerSettings(VariantSettings):
    """What an engine's process gets: its variant, and where files and log lines go."""

    cache_dir: Path | None = Field(
        None,
        description="Folder for built and downloaded checkpoints; when absent, `tetrad` in the "
        "user's cache folder for what is built, and the hub client's own (HF_HOME) for downloads.",
    )
    hub_token: SecretStr | None = Field(
        None, description="Token for repositories that are not public."
    )
    local_files_only: bool = Field(
        False, description="Use only what is already on this machine; never ask the hub."
    )

    # Development
    gpu_rehearsal: str | None = Field(
        None,
        pattern=r"^[0-9]{1,2}\.[0-9]$",
        description="For developers: run on the CPU what a GPU of this compute capability, such as "
        "`9.0`, would run. Needs `TRITON_INTERPRET=1` in the environment, and is very slow.",
    )

    # Log
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least important kind of line that is logged."
    )
    log_format: Literal["console", "json"] = Field(
        "console", description="Lines for people, or one JSON object a line."
    )

    @property
    def hub_token_value(self) -> str | None:
        """The hub's token in plain text, for whoever sends it."""
        return None if self.hub_token is None else self.hub_token.get_secret_value()

    @property
    def queue_limits(self) -> QueueLimits:
        """How much may wait at the engine."""
        tokens = self.max_queued_tokens
        return QueueLimits(
            max_queued_seqs=self.max_queued_seqs,
            max_queued_tokens=None if tokens == "auto" else tokens,
            max_queue_wait_s=self.max_queue_wait_s if tokens == "auto" else None,
        )

    def for_worker(self) -> dict[str, Any]:
        """Return the settings as JSON can carry them, the token readable: for the engine only."""
        return {
            **self.model_dump(mode="json", include=set(WorkerSettings.model_fields)),
            "hub_token": self.hub_token_value,
        }


def _read_entry(entry: object) -> object:
    """Read `VARIANT` or `NAME=VARIANT`, the short forms of a further variant."""
    if not isinstance(entry, str):
        return entry
    name, _, variant = entry.rpartition("=")
    return {"variant": variant, "served_model_name": name} if name else {"variant": variant}


_ORIGIN = re.compile(r"https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")


def _check_origin(origin: str) -> str:
    """Refuse what no browser sends as an origin, so that it does not fail unseen."""
    if origin != "*" and not _ORIGIN.fullmatch(origin):
        raise ValueError(
            "give `*`, or a scheme and a host in small letters, and a port if it is not the"
            " usual one, without a slash at the end: https://chat.example.org"
        )
    return origin


def _check_proxy(proxy: str) -> str:
    """Refuse what is no address, as nobody would ever be trusted by it."""
    if proxy != "*":
        try:
            ipaddress.ip_network(proxy)
        except ValueError:
            raise ValueError("give `*`, an address or a network, such as 10.0.0.0/8") from None
    return proxy


class VariantEntry(VariantSettings):
    """One more variant; what it leaves unset it takes from the settings of the first.

    But its name, its chat template and its order around a gap, which belong to one variant.
    """

    variant: str = Field(min_length=1)  # `demo` is read where it becomes a variant's settings


class Settings(BatchSettings, WorkerSettings, BaseSettings):
    """What an operator can choose."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,  # compose files pass on unset variables as empty ones
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    # What else is served
    also: Annotated[
        list[Annotated[VariantEntry, BeforeValidator(_read_entry)]],
        NoDecode,
        BeforeValidator(_read_entries),
    ] = Field(
        [],
        description="Further variants, routed to by `model`: `VARIANT` or `NAME=VARIANT`; in the "
        "file also a mapping with settings of its own, such as `{variant: owner/name, device: "
        "'cuda:1'}`. Repeat the flag for several; a variable takes several with spaces between.",
    )
    load_wait_s: Seconds = Field(
        30,
        description="How long a request waits for a variant that is loaded on demand.",
        json_schema_extra={"unit": "seconds"},
    )
    in_process: bool = Field(
        False,
        description="Run the engine in a thread of the server instead of a process of its own: "
        "for small machines. Whatever kills it then ends the server, too.",
    )

    # Who may reach it
    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address to listen on. Without a key only a loopback address is taken.",
    )
    port: Port = Field(8000, description="Port to listen on; 0 takes a free one.")
    api_key: SecretStr | None = Field(
        None,
        description="Key that every route but health asks for. "
        "A flag shows in the list of processes: prefer the variable or the file.",
    )
    api_key_file: Path | None = Field(
        None, description="File that holds the key, read once at the start."
    )
    admin_key: SecretStr | None = Field(
        None,
        description="Key of the routes under /admin/, which do not exist without one. "
        "Another than `api_key`.",
    )
    admin_key_file: Path | None = Field(None, description="File that holds the admin key.")

    metrics_token: SecretStr | None = Field(
        None,
        description="Token that opens /metrics, and nothing else; `api_key` opens it, too. "
        "Where neither is set, /metrics is open to whoever reaches the server.",
    )
    metrics_token_file: Path | None = Field(
        None, description="File that holds the token of /metrics."
    )

    cors_origins: Annotated[
        list[Annotated[str, AfterValidator(_check_origin)]],
        NoDecode,
        BeforeValidator(_read_entries),
    ] = Field(
        [],
        description="Origins of the pages that browsers may call the server from, such as "
        "`https://chat.example.org`; `*` is any, which without a key lets every page that is "
        "visited use the server. Repeat the flag for several; a variable takes several with spaces "
        "between.",
    )

    # Connections
    first_byte_timeout_s: Seconds = Field(
        30,
        description="How long a new connection may send nothing before it is closed.",
        json_schema_extra={"unit": "seconds"},
    )
    header_timeout_s: Seconds = Field(
        10,
        description="How long a request's headers may take, from its first byte on.",
        json_schema_extra={"unit": "seconds"},
    )
    body_timeout_s: Seconds = Field(
        30,
        description="How long a request's body may take; what comes of it adds its time at "
        "`min_body_rate`, so long as no more than twice this is left.",
        json_schema_extra={"unit": "seconds"},
    )
    min_body_rate: PositiveBytes = Field(
        ByteSize(16 * 1024),
        description="Slowest that a body may come once `body_timeout_s` has passed.",
        json_schema_extra={"unit": "bytes a second"},
    )
    idle_timeout_s: Seconds = Field(
        30,
        description="How long a connection is kept after an answer for the next request.",
        json_schema_extra={"unit": "seconds"},
    )
    max_headers: Positive = Field(
        100, description="Most headers of a request.", json_schema_extra={"unit": "headers"}
    )
    max_header_size: PositiveBytes = Field(
        ByteSize(64 * 1024),
        description="Most that all headers of a request take; also the longest path and query.",
        json_schema_extra={"unit": "bytes"},
    )
    max_connections: Positive = Field(
        4096,
        description="Most connections at a time, fewer where the system allows fewer open files. "
        "Above it the one that has been idle longest is closed, and where all are being answered "
        "the new one.",
        json_schema_extra={"unit": "connections"},
    )
    tls_certificate: Path | None = Field(
        None,
        description="File with the certificate (PEM, with those between it and the root) that "
        "HTTPS is served by; plain HTTP when absent.",
    )
    tls_key: Path | None = Field(
        None,
        description="File with the certificate's key (PEM, without a password), unless it is in "
        "the same file.",
    )
    root_path: str | None = Field(
        None,
        pattern=r"^(/[A-Za-z0-9._~-]+)+$",
        description="Path under which a proxy offers the server, such as `/tetrad`; requests may "
        "come with it or without.",
    )
    trusted_proxies: Annotated[
        list[Annotated[str, AfterValidator(_check_proxy)]],
        NoDecode,
        BeforeValidator(_read_entries),
    ] = Field(
        [],
        description="Addresses or networks of proxies whose `X-Forwarded-For` says in the log who "
        "asks; `*` is any. Repeat the flag for several; a variable takes several with spaces "
        "between.",
    )

    # What one request may ask
    max_body_size: PositiveBytes = Field(
        ByteSize(4 * 1024 * 1024),
        description="Largest request body; 16 such are held at once, until each has its place.",
        json_schema_extra={"unit": "bytes"},
    )
    max_body_parts: Positive = Field(
        150_000,
        description="Most parts of a request body: objects, lists and strings, names of "
        "fields among them; 3 other values count as one. What is read of a body in one go stops "
        "everybody else, at about 0.3 µs a part.",
        json_schema_extra={"unit": "parts"},
    )
    max_choices: Positive = Field(
        8, description="Largest `n`.", json_schema_extra={"unit": "choices"}
    )
    max_prompts: Positive = Field(
        64,
        description="Most prompts in one completions request.",
        json_schema_extra={"unit": "prompts"},
    )
    max_messages: Positive = Field(
        2048,
        description="Most messages in one chat request, and parts in one of them.",
        json_schema_extra={"unit": "messages"},
    )
    max_stop_strings: Positive = Field(
        16, description="Most stop strings.", json_schema_extra={"unit": "strings"}
    )
    max_stop_bytes: Positive = Field(
        256, description="Longest stop string, as UTF-8.", json_schema_extra={"unit": "bytes"}
    )

    unknown_fields: Literal["warn", "strict", "ignore"] = Field(
        "warn",
        description="What happens to fields of a request that have no effect: `warn` names them in "
        "the answer's `x-ignored-params`, `strict` refuses them, `ignore` says nothing.",
    )
    allow_priority: bool = Field(
        False,
        description="Let requests set `priority`, by which they overtake others.",
    )

    # What is said of requests
    log_requests: bool = Field(
        True,
        description="Write a log line for each request but health checks and scrapes: ids, counts "
        "and times, never its text.",
    )
    slow_request_s: Seconds = Field(
        10,
        description="A request is slow if all but decoding took longer (its body, its model's "
        "loading, rendering, the queue, its prompt, a reader that takes no data), or if a single "
        "token did. Its log line is a warning, and says where the time went.",
        json_schema_extra={"unit": "seconds"},
    )

    # Streams and stopping
    keep_alive_interval_s: Seconds = Field(
        15,
        description="Silence after which a stream gets a comment line.",
        json_schema_extra={"unit": "seconds"},
    )
    stall_limit_s: Seconds = Field(
        30,
        description="How long a client may leave its stream unread before it is cut off.",
        json_schema_extra={"unit": "seconds"},
    )
    drain_limit_s: Seconds = Field(
        90,
        description="How long open requests may go on after SIGTERM or SIGINT.",
        json_schema_extra={"unit": "seconds"},
    )

    @model_validator(mode="after")
    def _keys_agree(self) -> Settings:
        if self.api_key is not None and self.api_key_file is not None:
            raise ValueError("api_key and api_key_file are both set; keep one")
        if self.admin_key is not None and self.admin_key_file is not None:
            raise ValueError("admin_key and admin_key_file are both set; keep one")
        if self.metrics_token is not None and self.metrics_token_file is not None:
            raise ValueError("metrics_token and metrics_token_file are both set; keep one")
        if self.tls_key is not None and self.tls_certificate is None:
            raise ValueError("tls_key is set without tls_certificate; set both")
        return self

    def variants(self) -> list[WorkerSettings]:
        """Return the settings of each served variant's engine, the first one first."""
        own = self.model_dump(include=set(WorkerSettings.model_fields))
        return [
            WorkerSettings(**own),
            *(WorkerSettings(**self.inherited(entry)) for entry in self.also),
        ]

    def inherited(self, entry: VariantEntry) -> dict[str, Any]:
        """Fill a further variant's settings up with those of the first."""
        own = self.model_dump(include=set(WorkerSettings.model_fields))
        named: dict[str, Any] = {
            "variant": None,
            "served_model_name": None,
            "aliases": [],
            "chat_template": None,
            "infill_order": "auto",
        }
        return {**own, **named, **entry.model_dump(exclude_unset=True)}


def unit_of(field: FieldInfo) -> str | None:
    """Return the unit of a setting that has one."""
    extra = field.json_schema_extra
    unit = extra.get("unit") if isinstance(extra, dict) else None
    return str(unit) if unit is not None else None
