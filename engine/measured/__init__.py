"""Choices between ways to compute the same, by what is fastest on this machine.

`stopwatch` measures, `choices` chooses and tells, `kept_choices` keeps what was chosen for the next
start, and `machine` says for which machine that holds. What is measured belongs to whoever asks.
"""
