"""Files and batches: what callers leave here to be answered when there is time.

Kept in one folder, so that a batch survives the process: rows in SQLite, contents as files named by
random ids. Knows no HTTP; a line's request is run by whoever is given as `Execute`.
"""
