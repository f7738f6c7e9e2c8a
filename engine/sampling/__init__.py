"""From logits to token ids, row by row."""
