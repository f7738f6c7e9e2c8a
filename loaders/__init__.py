"""From "repo:branch" to a model on its devices: hub, quantisation, kernels. No HTTP, no scheduling."""
