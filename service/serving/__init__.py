"""Answers requests with a served model: text in, text out."""
