"""Decides who runs next. No tensors: every policy can be tested in microseconds."""
