"""Tools: what requests offer of them, and the calls to them in what a model writes."""
