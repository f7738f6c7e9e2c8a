"""GGUF files: read, checked, and translated into Transformers' terms.

`header` reads what a file says of itself, `files` joins the parts it may come in, `config` and
`names` translate settings and tensors, `tokenizer` and `text_files` give the text side its files,
`model` puts them together. How blocks of weights are stored is
`loaders.quantization.layouts.gguf`'s.
"""
