"""Where the files of a variant lie, and how they get to this machine."""
