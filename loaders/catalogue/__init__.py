"""Which variants a repository holds, and what is known of each without reading its weights."""
