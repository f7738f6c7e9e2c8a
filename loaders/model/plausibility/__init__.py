"""The check of a loaded model that shares no reading of the files with the rest.

The self-test compares kernels with the same reading of the files that they were prepared from, so
a wrong reading passes it. These checks ask whether what was read looks like a model at all:
`weights` and `rope` whether the files agree with themselves, `round_trip` whether text survives
the tokenizer, `prediction` whether a trained model predicts text. Put together in `run`. What is
found is a `Suspicion`: shown, never an error.
"""
