"""Health, and what administrators do."""
