"""Runs a scheduled batch: its tensors, the forward pass, its sampled tokens."""
