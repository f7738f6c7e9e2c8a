"""What loading found out, in plain values that errors and other processes can carry."""
