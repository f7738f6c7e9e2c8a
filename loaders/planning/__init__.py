"""Which variant fits a device, why, and which other engines would load it."""
