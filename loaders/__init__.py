"""From "repo:branch" to a model on its devices: hub, quantisation, kernels.

Knows nothing of HTTP or scheduling.
"""
