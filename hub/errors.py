"""Every error of ours, in one tree.

    HubError
    ├── MethodError          no such method, a broken plugin, two with one name
    │   └── ConfigError      a method's configuration: an unknown field, a bad value
    ├── FileError            an adapter's files: missing, truncated, edited, a pickle, not a number
    ├── AttachError          an adapter and a model that don't fit: keys, shapes, sites, heads
    │   └── BaseMismatch     the model is not the base that the adapter was trained on
    ├── DataError            a dataset, a column, a template
    ├── TrainError           a run that can't start, go on or be resumed
    ├── RemoteError          a remote that can't be reached, read or written
    ├── PackageMissing       an optional package; the message says what to install
    └── RegistryError        the registry's own, see hub_registry.errors

A message is one line that names the thing, what is there, and the way out.
"""

from hub_registry.errors import HubError


class MethodError(HubError):
    """A method can't be used: unknown, broken, or claimed by two distributions."""


class ConfigError(MethodError):
    """A method's configuration can't be used as it is."""


class FileError(HubError):
    """An adapter's files can't be read or written as what they should be."""


class AttachError(HubError):
    """An adapter and a model don't fit."""


class BaseMismatch(AttachError):
    """The model is not the base that the adapter was trained on."""


class DataError(HubError):
    """A dataset, one of its columns or a template can't be used."""


class TrainError(HubError):
    """A training run can't start, go on or be resumed."""


class RemoteError(HubError):
    """A remote can't be reached, read or written."""


class PackageMissing(HubError):
    """An optional package is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"{package} is not installed and this needs it; run: pip install 'pefthub[{extra}]'"
        )


__all__ = [
    "AttachError",
    "BaseMismatch",
    "ConfigError",
    "DataError",
    "FileError",
    "HubError",
    "MethodError",
    "PackageMissing",
    "RemoteError",
    "TrainError",
]
