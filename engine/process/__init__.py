"""The engine's side of the process border: its loop, its heartbeat, its grammars."""
