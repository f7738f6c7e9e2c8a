"""Text before and after a gap to token ids, so that a model fills the gap (fill in the middle).

`families` says how each family writes it, `choice` which one a variant is of, `parts` encodes what
users typed, `fitting` cuts what has no room, `infilling` joins them.
"""
