"""HTTP in, HTTP out: routes, request models, answers and errors."""
