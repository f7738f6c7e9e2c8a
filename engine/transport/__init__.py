"""Carries requests and tokens between the API process and an engine."""
