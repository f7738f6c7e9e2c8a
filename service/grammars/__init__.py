"""Structured output: what requests ask of a text's form, as grammars that an engine can follow."""
