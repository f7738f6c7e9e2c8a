"""The exit codes of an engine's process, as both sides know them."""

ENGINE_DIED = 1  # the reason has been reported, and logged
CANNOT_START = 2  # for a reason that another try would meet again; reported, and logged
