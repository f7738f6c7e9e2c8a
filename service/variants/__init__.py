"""The lifecycle of what is served: loaded, kept running, tried another way, drained, unloaded."""
