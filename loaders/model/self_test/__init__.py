"""The check of a loaded model before anybody asks it anything.

Kernels against the checkpoint's own tensors on real activations (`layers`), then what the model
says (`tokens`); put together in `run`. What is found is told in `loaders.reports.self_test`.
"""
