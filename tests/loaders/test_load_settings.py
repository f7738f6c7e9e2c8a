"""Settings that say otherwise than the tensors, through `load`: right, with a word, or refused."""

import json
import shutil

import pytest
import structlog
import torch
from safetensors.torch import load_file, save_file

from loaders.errors import CheckpointError, TensorError, UnsupportedQuantizationError
from loaders.load import load
from tests.dequantize import dequantized_model
from tests.models import (
    tiny_llama,
    tiny_tokenizer,
    write_awq_checkpoint,
    write_compressed_checkpoint,
    write_gptq_checkpoint,
)

PROMPT = torch.randint(0, 500, (1, 21), generator=torch.Generator().manual_seed(0))
MAX_LOGIT_ERROR = 2e-5  # relative to their spread; of the reference backend
DOWN = "model.layers.0.mlp.down_proj"

CHECKPOINTS = {
    "gptq": (write_gptq_checkpoint, {}),
    "gptq act order": (write_gptq_checkpoint, {"group_size": 32, "desc_act": True}),
    "gptq 8-bit, one group": (write_gptq_checkpoint, {"bits": 8, "group_size": -1}),
    "gptq 3-bit asymmetric": (write_gptq_checkpoint, {"bits": 3, "group_size": 64, "sym": False}),
    "gptq 2-bit": (write_gptq_checkpoint, {"bits": 2, "group_size": 32}),
    "gptq 3-bit": (write_gptq_checkpoint, {"bits": 3}),
    "gptq v2": (write_gptq_checkpoint, {"checkpoint_format": "gptq_v2"}),
    "gptq v2 3-bit": (write_gptq_checkpoint, {"bits": 3, "checkpoint_format": "gptq_v2"}),
    "gptq v2 8-bit": (write_gptq_checkpoint, {"bits": 8, "checkpoint_format": "gptq_v2"}),
    "gptq without g_idx": (write_gptq_checkpoint, {"store_g_idx": False}),
    "gptq mixed": (
        write_gptq_checkpoint,
        {"dynamic": {r"-:.*o_proj": {}, r"+:.*down_proj": {"bits": 8, "group_size": 32}}},
    ),
    "awq": (write_awq_checkpoint, {}),
    "awq gemv": (write_awq_checkpoint, {"version": "gemv"}),
    "awq gemv_fast": (write_awq_checkpoint, {"version": "gemv_fast", "group_size": 64}),
    "compressed": (write_compressed_checkpoint, {}),
    "compressed zero points": (write_compressed_checkpoint, {"sym": False, "group_size": 32}),
    "compressed act order": (write_compressed_checkpoint, {"actorder": "group"}),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Give each checkpoint's folder, and the logits of its dequantised weights, made once."""
    model, tokenizer = tiny_llama(hidden_size=256, intermediate_size=384), tiny_tokenizer()
    made = {}

    def checkpoint(name):
        if name not in made:
            write, parameters = CHECKPOINTS[name]
            folder = tmp_path_factory.mktemp("checkpoint")
            write(folder, model, tokenizer=tokenizer, **parameters)
            (folder / "quantize_config.json").unlink(missing_ok=True)
            with torch.inference_mode():
                made[name] = folder, dequantized_model(folder)(PROMPT).logits[0]
        return made[name]

    return checkpoint


@pytest.fixture
def edited(checkpoints, tmp_path):
    """Copy a checkpoint and change its settings and tensors; return the folder and the logits."""

    def edit(name, settings=None, tensors=None):
        source, logits = checkpoints(name)
        folder = shutil.copytree(source, tmp_path / "copy", dirs_exist_ok=True)
        config = json.loads((folder / "config.json").read_text())
        said = config.pop("quantization_config")
        config |= settings(said) if settings else {"quantization_config": said}
        (folder / "config.json").write_text(json.dumps(config))
        if tensors is not None:
            stored = load_file(folder / "model.safetensors")
            stored |= {k: v.contiguous() for k, v in tensors(stored).items()}
            save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
        return folder, logits

    return edit


def saying(**changes):
    """Change settings; None takes one away. Those of compressed-tensors' only group likewise."""

    def settings(said):
        weights = said.get("config_groups", {}).get("group_0", {}).get("weights", {})
        for key, value in changes.items():
            part = weights if key in weights else said
            part.pop(key, None)
            if value is not None:
                part[key] = value
        return {"quantization_config": said}

    return settings


def every(ending, change, among=""):
    """Change each tensor whose name ends so."""
    return lambda stored: {
        name: change(tensor)
        for name, tensor in stored.items()
        if name.endswith(f".{ending}") and among in name
    }


def load_logged(folder):
    with structlog.testing.capture_logs() as logs:
        loaded = load(str(folder), device="cpu", backend="reference")
    return loaded, logs


def check_right(folder, logits):
    """Logits are those of the weights before anybody lied about them; return what was logged."""
    loaded, logs = load_logged(folder)
    with torch.inference_mode():
        found = loaded.model(PROMPT).logits[0]
    assert float((found - logits).abs().max()) < MAX_LOGIT_ERROR * float(logits.std())
    return [entry["event"] for entry in logs]


LIES = {
    "bits": [
        ("gptq", {"bits": 8}),
        ("gptq 3-bit asymmetric", {"bits": 4}),
        ("gptq 8-bit, one group", {"bits": 2}),
        ("compressed zero points", {"num_bits": 8}),
        ("compressed", {"num_bits": 2}),
        ("compressed act order", {"num_bits": 3}),
    ],
    "group size": [
        ("gptq", {"group_size": 64}),
        ("gptq", {"group_size": -1}),
        ("gptq", {"group_size": 130}),  # explains as many groups, the last one short
        ("gptq without g_idx", {"group_size": 130}),
        ("gptq act order", {"group_size": 128}),
        ("gptq 8-bit, one group", {"group_size": 128}),
        ("awq", {"group_size": 32}),
        ("awq gemv", {"group_size": 32}),
        ("awq gemv_fast", {"group_size": 128}),
        ("compressed", {"group_size": 32}),
        ("compressed zero points", {"group_size": 128}),
    ],
    "bits and group size": [("gptq", {"bits": 3, "group_size": 32})],
    "method": [
        ("gptq", {"quant_method": "awq"}),
        ("gptq v2", {"quant_method": "awq"}),
        ("awq", {"quant_method": "gptq"}),
        ("awq gemv", {"quant_method": "gptq"}),
        ("awq gemv_fast", {"quant_method": "gptq"}),
    ],
    "version": [
        ("awq", {"version": "gemv"}),
        ("awq", {"version": "gemv_fast"}),
        ("awq gemv", {"version": "gemm"}),
        ("awq gemv_fast", {"version": "exllama"}),
    ],
    "rules": [
        ("gptq", {"dynamic": {"+:.*q_proj": {"bits": 8}}}),
        ("gptq mixed", {"dynamic": None}),
        ("gptq mixed", {"dynamic": {"+:.*down_proj": {"bits": 3}, "+:.*up_proj": {"bits": 8}}}),
    ],
    "zero points": [
        ("gptq v2", {"checkpoint_format": "gptq"}),
        ("gptq v2 8-bit", {"checkpoint_format": None}),
        ("gptq v2 3-bit", {"checkpoint_format": "gptq"}),
        ("gptq v2", {"checkpoint_format": None, "sym": None}),
        ("gptq", {"checkpoint_format": "gptq_v2"}),
        ("gptq 2-bit", {"checkpoint_format": "gptq_v2"}),
        ("gptq 3-bit", {"checkpoint_format": "gptq_v2"}),
        ("compressed zero points", {"symmetric": True}),
    ],
    "act order": [
        ("gptq act order", {"desc_act": False}),
        ("gptq", {"desc_act": True}),
        ("compressed act order", {"actorder": None}),
    ],
}


@pytest.mark.parametrize(
    ("name", "lie"), [lie for lies in LIES.values() for lie in lies], ids=lambda value: str(value)
)
def test_tensors_beat_settings_where_they_are_decisive_and_the_log_says_so(edited, name, lie):
    assert "settings_contradict_tensors" in check_right(*edited(name, saying(**lie)))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_settings_that_are_true_are_passed_without_a_word(edited, name):
    told = check_right(*edited(name))
    assert not {event for event in told if "contradict" in event or "not" in event}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("gptq", {"sym": False}),
        ("gptq", {"sym": None}),
        ("gptq", {"desc_act": None}),
        ("gptq", {"damp_percent": "0.1", "meta": {"quantizer": "gptqmodel:1.4.0"}}),
        ("gptq", {"bits": "4", "group_size": 128.0}),
        ("gptq", {"group_size": "128", "sym": "True", "desc_act": "False"}),
        ("gptq", {"sym": 1, "desc_act": 0}),
        ("gptq", {"desc_act": True, "static_groups": True}),
        ("gptq", {"quant_method": "GPTQ"}),
        ("gptq", {"quant_method": "gptq_marlin"}),
        ("gptq 8-bit, one group", {"group_size": None}),
        ("gptq 8-bit, one group", {"group_size": "None"}),
        ("gptq 8-bit, one group", {"group_size": 10**30}),  # as good as one group
        ("gptq", {"group_size": None}),
        ("gptq act order", {"group_size": None, "desc_act": "true"}),
        ("awq", {"version": "exllama"}),
        ("awq", {"version": "ipex"}),
        ("awq", {"version": "GEMM", "group_size": None}),
        ("compressed", {"num_bits": "4", "symmetric": "true"}),
    ],
)
def test_settings_that_mean_what_the_tensors_are_load_unwarned(edited, name, settings):
    assert "settings_contradict_tensors" not in check_right(*edited(name, saying(**settings)))


@pytest.mark.parametrize(
    ("name", "settings", "error", "message"),
    [
        ("gptq", {"bits": "four"}, CheckpointError, "bits='four', expected a whole number"),
        ("gptq", {"bits": 4.5}, CheckpointError, "bits=4.5"),
        ("gptq", {"group_size": "128g"}, CheckpointError, "group_size='128g'"),
        ("gptq", {"sym": "maybe"}, CheckpointError, "sym='maybe', expected true or false"),
        ("gptq", {"desc_act": 2}, CheckpointError, "desc_act=2"),
        ("gptq", {"is_marlin_format": True}, UnsupportedQuantizationError, "Marlin"),
        ("gptq", {"checkpoint_format": "marlin"}, UnsupportedQuantizationError, "'marlin'"),
        ("gptq", {"checkpoint_format": "exllama"}, UnsupportedQuantizationError, "'exllama'"),
        ("gptq", {"format": "gptq_v2", "checkpoint_format": "gptq"}, CheckpointError, "format="),
        ("gptq", {"pack_dtype": "int64"}, UnsupportedQuantizationError, "pack_dtype='int64'"),
        ("gptq", {"rotation": "hadamard"}, UnsupportedQuantizationError, "rotation='hadamard'"),
        ("gptq", {"dynamic": {"-:.*q_proj": {}}}, TensorError, "q_proj is packed, but"),
        ("gptq without g_idx", {"desc_act": True}, TensorError, "no g_idx.*act order"),
        ("gptq 3-bit asymmetric", {"sym": True}, TensorError, "zero point must be 4;.*holds 0, 2"),
        ("awq gemv", {"group_size": 256}, TensorError, "filled in for 2 groups"),
        ("awq gemv", {"group_size": -1}, TensorError, "filled in for 2 groups"),
        ("compressed", {"actorder": "group"}, TensorError, "no weight_g_idx.*act order"),
        ("compressed", {"strategy": "channel"}, CheckpointError, "only the strategy 'group'"),
    ],
)
def test_settings_that_cannot_be_true_are_refused_with_what_was_found(
    edited, name, settings, error, message
):
    folder, _ = edited(name, saying(**settings))
    with pytest.raises(error, match=message):
        load(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        ("gptq", every("g_idx", torch.zeros_like)),
        ("gptq", every("g_idx", torch.zeros_like, "layers.1.mlp")),
        ("gptq mixed", every("g_idx", torch.zeros_like)),
        ("gptq 8-bit, one group", every("g_idx", torch.zeros_like)),
        ("compressed", lambda _: {f"{DOWN}.weight_g_idx": torch.zeros(384, dtype=torch.int32)}),
        ("compressed", lambda _: {f"{DOWN}.weight_g_idx": torch.full((384,), -1).int()}),
    ],
)
def test_a_group_index_that_was_never_filled_in_means_groups_in_order(edited, name, tensors):
    check_right(*edited(name, tensors=tensors))


def test_a_group_index_that_was_never_filled_in_says_nothing_without_settings_either(edited):
    def no_settings(_):
        return {}

    folder, logits = edited("gptq", no_settings, every("g_idx", torch.zeros_like))
    assert "group_index_says_nothing" in check_right(folder, logits)


def test_a_group_index_of_zeros_means_groups_in_order_also_where_settings_say_act_order(edited):
    folder, logits = edited("gptq", saying(desc_act=True), every("g_idx", torch.zeros_like))
    assert "settings_contradict_tensors" in check_right(folder, logits)


@pytest.mark.parametrize(
    ("name", "tensors", "message"),
    [
        ("gptq act order", every("g_idx", torch.zeros_like, DOWN), "all zero, in 1 of 14"),
        ("gptq act order", every("g_idx", torch.ones_like), "0 of 256 inputs into group 0 of 8"),
        ("gptq", every("g_idx", lambda old: old // 2), r"256 of \d+ inputs into group 0 of [23]"),
        ("gptq", every("g_idx", lambda old: old.clamp(max=1), DOWN), "256 of 384 inputs into"),
        ("compressed act order", every("weight_g_idx", torch.zeros_like), "all zero, in 14"),
        (
            "compressed act order",
            every("weight_g_idx", lambda old: torch.full_like(old, -1), DOWN),
            "all -1, in 1 of 14",
        ),
    ],
)
def test_a_group_index_that_cannot_be_true_is_refused_by_name(edited, name, tensors, message):
    folder, _ = edited(name, tensors=tensors)
    with pytest.raises(TensorError, match=message):
        load(str(folder), device="cpu")


def test_shapes_that_fit_no_bits_are_refused_by_name(edited):
    """Half of the codes, and settings of another width: no layout is left to tell from."""
    folder, _ = edited(
        "gptq 8-bit, one group",
        saying(bits=3),
        every("qweight", lambda old: old[: len(old) // 2]),
    )
    with pytest.raises(TensorError, match=r"model\.layers\.0\.[a-z_.]+\.(qweight|qzeros)"):
        load(str(folder), device="cpu")


def test_which_version_zero_points_are_of_is_decided_from_all_layers_together(edited):
    """One layer of another version than the rest fits neither, however plain each one is."""
    folder, _ = edited("gptq", tensors=every("qzeros", lambda old: old + 0x11111111, DOWN))
    with pytest.raises(TensorError, match=rf"must be 8; {DOWN}.qzeros holds 9 as gptq.*1 are"):
        load(str(folder), device="cpu")


def test_layers_that_rules_call_asymmetric_are_not_judged(edited):
    rules = {"+:.*down_proj": {"sym": False}}
    tensors = every("qzeros", lambda old: old + 0x11111111, "down_proj")
    folder, _ = edited("gptq", saying(dynamic=rules), tensors)
    with torch.inference_mode():
        expected = dequantized_model(folder)(PROMPT).logits[0]
    assert "settings_contradict_tensors" not in check_right(folder, expected)


def test_zero_points_of_awq_are_used_though_settings_deny_them(edited):
    told = check_right(*edited("awq", saying(zero_point=False)))
    assert "zero_points_not_centred" in told


@pytest.mark.parametrize(
    ("settings", "event"),
    [
        ({"lm_head": True}, "settings_contradict_tensors"),
        ({"modules_in_block_to_quantize": [["mlp.up_proj"]]}, "settings_contradict_tensors"),
        ({"zero_point": True}, "settings_contradict_each_other"),
        ({"version": "gemm"}, "settings_not_read"),
        ({"curvature": 3}, "settings_not_read"),
        ({"adapter": {"name": "lora"}}, "adapter_not_applied"),
    ],
)
def test_settings_that_change_nothing_are_not_passed_over_in_silence(edited, settings, event):
    assert event in check_right(*edited("gptq", saying(**settings)))


@pytest.mark.parametrize("is_nested", [False, True])
def test_compression_config_is_read_as_quantization_config(edited, is_nested):
    dense = {"format": "dense", "global_sparsity": 0.1}

    def settings(said):
        inner = {"quantization_config": said, "sparsity_config": dense} if is_nested else said
        return {"compression_config": inner}

    check_right(*edited("compressed", settings))


def test_sparse_weights_in_compression_config_are_refused_by_name(edited):
    def settings(said):
        sparsity = {"format": "sparse-24-bitmask"}
        return {"compression_config": {"quantization_config": said, "sparsity_config": sparsity}}

    folder, _ = edited("compressed", settings)
    with pytest.raises(UnsupportedQuantizationError, match="sparse-24-bitmask"):
        load(str(folder), device="cpu")


@pytest.mark.parametrize(
    "rule",
    [
        {"bits": 16, "data_type": "float"},
        {"bits": 16, "act_bits": 16, "data_type": "float", "act_data_type": "float"},
        {"bits": "16", "data_type": "fp"},
    ],
)
@pytest.mark.parametrize("by", ["name", "pattern"])
def test_auto_rounds_rules_of_16_bits_mean_dense_layers(edited, rule, by):
    names = [f"model.layers.{n}.self_attn.o_proj" for n in (0, 1)] if by == "name" else ["o_proj"]

    def settings(_):
        extra = {**dict.fromkeys(names, rule), "mlp.down_proj": {"bits": 8, "group_size": 32}}
        said = {"quant_method": "auto-round", "packing_format": "auto_round:auto_gptq", "bits": 4}
        more = {"group_size": 128, "sym": True, "data_type": "int", "extra_config": extra}
        return {"quantization_config": said | more}

    assert "settings_contradict_tensors" not in check_right(*edited("gptq mixed", settings))


@pytest.mark.parametrize(
    ("name", "settings", "tensors"),
    [
        ("gptq", {}, every("g_idx", lambda old: old.to(torch.uint32))),
        ("gptq", {}, every("g_idx", lambda old: old.float())),
        ("gptq", {}, every("qzeros", lambda old: old.float())),
        ("awq", {"zero_point": False}, every("qzeros", lambda old: old.long())),
        ("awq gemv", {"zero_point": False}, every("qzeros", lambda old: old.half())),
        ("awq gemv_fast", {"zero_point": False}, every("scales", lambda old: old.int())),
    ],
)
def test_tensors_of_another_dtype_are_refused_by_name_before_their_values_are_judged(
    edited, name, settings, tensors
):
    folder, _ = edited(name, saying(**settings), tensors)
    with pytest.raises(CheckpointError, match=r"(g_idx|qzeros|scales).* is [IUF]\d+, expected"):
        load(str(folder), device="cpu")
