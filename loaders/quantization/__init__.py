"""How weights are packed: settings and tensors, as codes, scales and zero points."""
