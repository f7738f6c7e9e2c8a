"""Looks at a machine before a server is started on it, and says what to mend, and how.

Each check is a function of plain facts that gives a `Finding`; `examine` reads the facts.
"""
