"""Everything the loaders raise on purpose.

LoadError
├── InvalidSpecError              the name of the variant cannot be read
├── RepositoryNotFoundError       no such repository, or no access to it
├── RevisionNotFoundError         the repository has no such branch, tag or commit
├── HubError                      the hub could not be asked
├── CacheError                    the cache's disk is full, or it cannot be written
├── UnsafeCheckpointError         pickle, code or paths that a checkpoint must not bring
├── CheckpointError               files are missing, truncated or contradict each other
│   ├── SettingsError             config.json says what no model can be
│   ├── TensorError               a tensor's shape, dtype or values are not what the model needs
│   └── QuantizationNotFoundError packed tensors whose parameters cannot be told
├── TokenizerNotTriedError        the installation or the machine did not let a tokenizer be tried
├── UnsupportedQuantizationError  a method, width or layout that is not read here
├── UnsupportedModelError         a model type without a native class
├── InvalidPlanError              a plan is asked for what cannot be understood
│   ├── InvalidDeviceError        no such device
│   └── InvalidPreferenceError    not quality, speed or memory
├── BackendError                  the asked kernel backend cannot run this variant here
├── SelfTestError                 the loaded model computes something else than its files say
└── NotEnoughMemoryError          the weights do not fit the device
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loaders.reports.self_test import SelfTestReport


class LoadError(Exception):
    """Root of the loaders' errors; the message says what was found, expected, and what to do."""


class InvalidSpecError(LoadError):
    """The variant's name does not follow any of the accepted forms."""


class RepositoryNotFoundError(LoadError):
    """No such repository is cached or reachable with the credentials given."""


class RevisionNotFoundError(LoadError):
    """The repository exists, the revision does not."""


class HubError(LoadError):
    """The hub did not answer, or not usefully."""


class CacheError(LoadError):
    """What was fetched cannot be kept: the disk is full, or the folder cannot be written."""


class UnsafeCheckpointError(LoadError):
    """The checkpoint brings what could run code or reach outside its folder."""


class CheckpointError(LoadError):
    """The checkpoint's files are missing, damaged or contradictory."""


class SettingsError(CheckpointError):
    """The settings alone refuse the model, whatever its weights are."""


class TensorError(CheckpointError):
    """A tensor is not what the model needs."""


class QuantizationNotFoundError(CheckpointError):
    """The tensors are packed, and nothing tells how."""


class TokenizerNotTriedError(LoadError):
    """Nothing is known of the tokenizer: its trial could not be held, or not to the end."""


class UnsupportedQuantizationError(LoadError):
    """The checkpoint is quantised in a way that is not read here."""


class UnsupportedModelError(LoadError):
    """Transformers has no native class for this model type."""


class InvalidPlanError(LoadError):
    """What a plan is asked for cannot be understood."""


class InvalidDeviceError(InvalidPlanError):
    """The text names no device."""


class InvalidPreferenceError(InvalidPlanError):
    """The text names nothing that a choice can prefer."""


class BackendError(LoadError):
    """The asked kernel backend cannot run this variant on this device."""


class SelfTestError(LoadError):
    """The loaded model computes something else than its files say."""

    def __init__(self, report: SelfTestReport) -> None:
        super().__init__(f"{report}; another --backend may compute it rightly")
        self.report = report


class SuspicionError(LoadError):
    """There is a reason to doubt that the files were read right, and the settings are strict."""


class NotEnoughMemoryError(LoadError):
    """The weights do not fit into the memory that is free."""
