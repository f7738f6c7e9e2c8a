"""`tetrad variants`, a real process with the hub's real client, against a hub of the tests."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from loaders.catalogue.variants import Variant, VariantKind
from service.cli import main
from service.commands.variants import describe, show
from tests import published
from tests.hub_server import Fault, Hub, HubRepository, running_hub
from tests.published import GPTQ_7B, GPTQ_BRANCHES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ESCAPE = "\x1b[2J\x1b]0;title\x07"


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    with running_hub() as running:
        yield running


@pytest.fixture
def hub(server: Hub) -> Hub:
    server.repositories = {GPTQ_7B: published.gptq_repository()}
    server.faults, server.redirects_large_files = [], True
    return server


@pytest.fixture
def process(hub: Hub, tmp_path: Path) -> Any:
    """Run the command as a process of its own, with the hub's client as it is."""

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(tmp_path / "home"),
            "HF_ENDPOINT": hub.url,
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TETRAD_CACHE_DIR": str(tmp_path / "cache"),
            "OMP_NUM_THREADS": "1",
            **variables,
        }
        done = subprocess.run(
            [sys.executable, "-c", "from service.cli import main; main()", "variants", *arguments],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


@pytest.fixture
def tetrad(hub: Hub, tmp_path: Path, monkeypatch: Any, capsys: Any) -> Any:
    """Run the command in this process, which spares the seconds that an import takes."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
    monkeypatch.setattr("service.commands.repository_options.set_up_logs", lambda _: None)
    monkeypatch.setenv("TETRAD_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)

    def run(*arguments: str) -> SimpleNamespace:
        monkeypatch.setattr("sys.argv", ["tetrad", "variants", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return SimpleNamespace(returncode=ended.value.code, stdout=said.out, stderr=said.err)

    return run


@pytest.mark.slow
def test_the_7b_cards_table_is_reproduced_in_a_hundred_columns(process, tmp_path):
    done = process(GPTQ_7B)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    rows = {line.split()[0]: line.split() for line in lines if " gptq " in line}
    assert list(rows) == [branch.name for branch in GPTQ_BRANCHES]
    for branch in GPTQ_BRANCHES:
        group = "none" if branch.group_size == -1 else str(branch.group_size)
        order = "yes" if branch.desc_act else "no"
        row = rows[branch.name]
        assert row[1:7] == ["gptq", str(branch.bits), group, order, "yes", "0.1"]
        assert row[7:11] == ["Evol", "Instruct", "Code", "8192"]
        assert float(row[11]) == pytest.approx(float(branch.gigabytes), rel=0.03)
        assert row[12] == published.gptq_repository().commits[branch.name][:7]
    assert not (tmp_path / "cache").exists()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_json_has_every_number(tetrad):
    done = tetrad(GPTQ_7B, "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["repo"]) == (0, GPTQ_7B)
    entry = next(v for v in document["variants"] if v["revision"] == GPTQ_BRANCHES[4].name)
    assert entry == {
        "variant": f"{GPTQ_7B}:gptq-8bit--1g-actorder_True",
        "revision": "gptq-8bit--1g-actorder_True",
        "commit": published.gptq_repository().commits["gptq-8bit--1g-actorder_True"],
        "file": None,
        "kind": "gptq",
        "format": "gptq",
        "bits": 8,
        "group_size": -1,
        "act_order": True,
        "symmetric": True,
        "gguf_type": None,
        "damp": 0.1,
        "dataset": "Evol Instruct Code",
        "seq_len": 8192,
        "weight_bytes": 7_009_722_368,
        "num_tensors": 963,
        "disagreements": [],
        "refusal": None,
    }


def test_one_branch_or_file_may_be_named(tetrad, hub):
    hub.repositories[published.GGUF_13B] = published.gguf_repository()
    one = json.loads(tetrad(f"{GPTQ_7B}:gptq-4bit-32g-actorder_True", "--json").stdout)
    assert [v["revision"] for v in one["variants"]] == ["gptq-4bit-32g-actorder_True"]
    for name in (f"{published.GGUF_13B}:Q4_K_M", f"{published.GGUF_13B}/{FILE}"):
        (entry,) = json.loads(tetrad(name, "--json").stdout)["variants"]
        assert (entry["file"], entry["gguf_type"]) == (FILE, "Q4_K_M")


FILE = "codellama-13b-python.Q4_K_M.gguf"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "name is empty"),
        ("../../etc/passwd", "there is no folder"),
        ("a/b/c", "there is no folder"),
        ("some one/model", "not a repository's name"),
        ("someone/mo\x1b[2Jdel", "not a repository's name"),
        ("someone/model:../x", "no usable revision"),
        ("https://example.org/a/b", "names no usable revision"),
        ("x" * 5000, "tetrad:"),
        (f"{GPTQ_7B}:no/such/branch", "it has gptq-4bit-128g-actorder_True"),
        (f"{GPTQ_7B}:gptq-4bit-32g-actorder_Tru", "did you mean gptq-4bit-32g-actorder_True?"),
        ("TheBloke/CodeLama-7B-Instruct-GPTQ", f"did you mean {GPTQ_7B}"),
    ],
)
def test_a_wrong_name_is_one_line_and_exit_code_2(tetrad, name, said):
    done = tetrad(name)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.removesuffix("\n").isprintable()


def test_a_private_repository_needs_its_token(tetrad, hub, monkeypatch):
    files = published.gptq_repository().branches["main"]
    hub.repositories["someone/private"] = HubRepository({"main": files}, token="hf_secret")
    refused = tetrad("someone/private")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "give a token" in refused.stderr
    assert tetrad("someone/private", "--token", "hf_secret").returncode == 0
    monkeypatch.setenv("TETRAD_HUB_TOKEN", "hf_secret")
    assert tetrad("someone/private").returncode == 0
    wrong = tetrad("someone/private", "--token", "hf_wrong")
    assert "hf_wrong" not in wrong.stderr + wrong.stdout


def test_a_hub_in_trouble_is_waited_for_and_then_given_up(tetrad, hub):
    hub.faults = [Fault("refs", times=1, status=503), Fault("refs", 1, status=429, retry_after_s=0)]
    done = tetrad(GPTQ_7B)
    assert (done.returncode, done.stderr) == (0, "")
    offline = tetrad(GPTQ_7B, "--offline")
    assert offline.returncode == 2
    assert "downloads are off" in offline.stderr


@pytest.mark.slow
def test_offline_and_unreachable_mean_the_cache(tetrad, process, tmp_path):
    published.write_cache(tmp_path / "cache", GPTQ_7B, published.gptq_repository())
    offline = tetrad(GPTQ_7B, "--local-files-only", "--json")
    assert len(json.loads(offline.stdout)["variants"]) == 6
    unreachable = process(GPTQ_7B, "--json", HF_ENDPOINT="http://127.0.0.1:9")
    assert json.loads(unreachable.stdout) == json.loads(offline.stdout)
    assert unreachable.stderr.count("\n") == 1
    assert "hub_unreachable" in unreachable.stderr


@pytest.mark.parametrize("endpoint", ["nonsense", "http://127.0.0.1:9"])
def test_a_wrong_endpoint_is_one_line_and_exit_code_2(tetrad, endpoint, monkeypatch, quick_retries):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
    done = tetrad("someone/model")
    assert (done.returncode, done.stdout) == (2, "")
    assert "HF_ENDPOINT" in done.stderr
    assert done.stderr.count("\n") == 1


def test_what_a_hub_says_never_reaches_the_terminal_raw(tetrad, hub):
    files = dict(published.gptq_repository().branches["main"])
    model_card = published.gptq_card().replace("Evol Instruct Code", f"Evol{ESCAPE}").encode()
    config = json.loads(files["config.json"])
    config["quantization_config"]["quant_method"] = f"odd{ESCAPE}"
    hub.repositories["someone/odd"] = HubRepository(
        {
            "main": {**files, "README.md": model_card},
            "bad": {**files, "config.json": json.dumps(config).encode()},
            "worse": {**files, f"a{ESCAPE}.json": b"{}"},
        }
    )
    done = tetrad("someone/odd")
    assert done.returncode == 0
    assert "\x1b" not in done.stdout + done.stderr
    assert "\x07" not in done.stdout + done.stderr
    assert re.search(r"bad cannot be loaded: .*method", done.stdout)


def variant(**changes: Any) -> Variant:
    fields = {"repo": "a/b", "revision": "main", "commit": None, "kind": VariantKind.OTHER}
    return Variant(**{**fields, **changes})


def test_long_names_are_folded_and_not_cut(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    name = "a-branch-with-a-name-" * 10
    show("a/b", [variant(revision=name)])
    assert name in "".join(line.split(" ")[0] for line in capsys.readouterr().out.splitlines())


def test_remarks_name_the_variant_and_stand_below_the_table(capsys):
    show("a/b", [variant(disagreements=("the model card says 8",), refusal="no weights\n\x1b[2J")])
    assert capsys.readouterr().out.splitlines()[-2:] == [
        "main: the model card says 8",
        "main cannot be loaded: no weights ?[2J",
    ]


def test_what_is_not_known_is_null():
    entry = describe(variant())
    assert entry["kind"] == "other"
    assert {entry[key] for key in ("bits", "group_size", "act_order", "symmetric", "file")} == {
        None
    }
