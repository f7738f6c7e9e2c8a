import torch

from loaders.memory.release import return_freed_memory


def test_what_pytorch_keeps_of_a_gpu_goes_back_to_it(monkeypatch):
    """Else the KV cache would be sized as if a checkpoint's tensors were still there."""
    emptied: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append("cache"))
    return_freed_memory()
    assert emptied == ["cache"]


def test_a_gpu_that_nobody_uses_is_left_alone(monkeypatch):
    emptied: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append("cache"))
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    return_freed_memory()
    assert emptied == []
