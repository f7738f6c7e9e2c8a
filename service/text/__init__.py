"""Text in, token ids out, and back again: templates, prompts, incremental text, stop strings.

Nothing here knows HTTP or the engine. Templates come from checkpoints and are not trusted: they run
in a process of their own (`sandbox`), and what users typed never becomes a control piece
(`control_pieces`).
"""
