"""Docker's health check: exit code 0 once the server in this container is ready.

Prints what the server answered, for `docker inspect`. Reads the variables that the server reads.
"""

import http.client
import os
import ssl
import sys

TIMEOUT_S = 4  # less than the Dockerfile's

# No urllib: it would ask a proxy (HTTP_PROXY) for 127.0.0.1.
address = "127.0.0.1", int(os.environ["TETRAD_PORT"])
connection: http.client.HTTPConnection
if os.environ.get("TETRAD_TLS_CERTIFICATE"):
    # The certificate is for the name that callers use, and may be signed by nobody known here.
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    connection = http.client.HTTPSConnection(*address, timeout=TIMEOUT_S, context=context)
else:
    connection = http.client.HTTPConnection(*address, timeout=TIMEOUT_S)
try:
    connection.request("GET", "/health/ready")
    answer = connection.getresponse()
    print(answer.read().decode())
except (OSError, http.client.HTTPException) as error:
    sys.exit(f"no answer: {error}")
sys.exit(answer.status != 200)
