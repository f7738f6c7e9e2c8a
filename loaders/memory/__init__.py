"""What a model takes on a device, and what the device has free."""
