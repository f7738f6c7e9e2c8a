"""The `tetrad` commands besides `serve`, one module each; `service.cli` registers them.

What takes long to import (the hub's client, torch) is imported when a command runs.
"""
