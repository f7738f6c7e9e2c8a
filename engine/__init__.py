"""Token ids in, token ids out: continuous batching over any Transformers causal language model."""
