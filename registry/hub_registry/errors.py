"""The errors of the registry, and the root of every error of ours.

    HubError
     └── RegistryError            the registry can't do what was asked
          ├── BadName             a name, an alias, a file name or a reference that is not one
          ├── BadIdentity         a base identity that can't be read
          ├── UnknownReference    no such adapter, version, alias or file
          ├── AlreadyExists       something else stands where this would go
          ├── CorruptBlob         bytes that are not what their digest says
          ├── SchemaError         a database of another schema than this program's
          └── StorageError        disk, folder or database: full, read-only, forbidden, damaged

Each message is one line: the thing, what is there, and the way out.
"""

from __future__ import annotations


class HubError(Exception):
    """The root of every error of ours."""


class RegistryError(HubError):
    """The registry can't do what was asked."""


class BadName(RegistryError):
    """A name, an alias, a file name or a reference that is not one."""


class BadIdentity(RegistryError):
    """A base identity that can't be read."""


class UnknownReference(RegistryError):
    """No such adapter, version, alias or file in this registry."""


class AlreadyExists(RegistryError):
    """Something else stands where this would go."""


class CorruptBlob(RegistryError):
    """Stored bytes are missing or are not what their digest says."""


class SchemaError(RegistryError):
    """The database has another schema than this program's."""


class StorageError(RegistryError):
    """The disk, a folder or the database is full, read-only, forbidden or damaged."""
