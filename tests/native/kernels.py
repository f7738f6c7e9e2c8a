"""Whether there are kernels to test here."""

from __future__ import annotations

import pytest

from native import library

WHY_NOT = library.why_not()
needed = pytest.mark.skipif(WHY_NOT is not None, reason=WHY_NOT or "")
