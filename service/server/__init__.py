"""The web server's process: listening, draining, stopping."""
