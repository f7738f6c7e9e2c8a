"""What an engine's process and the API's tell each other of the model, carried through unread.

The engine knows nothing of repositories, attempts or kernels: whoever builds it writes these down,
and whoever started its process reads them again. One type for each, so that none is taken for
another.
"""

from __future__ import annotations

from typing import NewType

EncodedLoadAttempt = NewType("EncodedLoadAttempt", bytes)
EncodedModelDescription = NewType("EncodedModelDescription", bytes)
EncodedStartFailure = NewType("EncodedStartFailure", bytes)
