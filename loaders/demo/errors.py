"""What building the demo raises on purpose.

LoadError
└── DemoError
    ├── DemoPackageMissingError   a package that the demo is built from is not installed
    └── DemoSourceError           the package's weights are not those the demo is made for
"""

from __future__ import annotations

from loaders.errors import LoadError


class DemoError(LoadError):
    """Root of the demo's errors."""


class DemoPackageMissingError(DemoError):
    """A package that carries or reads the demo's weights is not installed."""


class DemoSourceError(DemoError):
    """The weights found are not of the shape the demo is made for."""
