"""What a checkpoint's files say: tensors, settings, tokenizer, generation defaults."""
