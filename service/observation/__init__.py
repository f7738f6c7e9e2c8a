"""What operators see of a server: metrics, a log line for each request, the event loop's lag.

Counts in plain objects while requests run, which costs least; families of metrics are made of them
when somebody asks. Knows no HTTP: `service.api` says what happened, and answers with it.
"""
