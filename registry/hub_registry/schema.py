"""The revision of a database's schema: reading, creating, upgrading.

Alembic is imported only where a schema is made or moved.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import DBAPIError, NoResultFound

from hub_registry.errors import SchemaError

if TYPE_CHECKING:
    from alembic.config import Config

REVISION = "r0001"

_QUERY = text("SELECT version_num FROM alembic_version")


def read_revision(connection: Connection) -> str | None:
    """The revision of this database's schema; None where there are no tables at all. Raises
    SchemaError where the tables are not ours."""
    try:
        with connection.begin_nested():
            revision: str = connection.execute(_QUERY).scalar_one()
            return revision
    except (DBAPIError, NoResultFound):
        # There is no such table, or the database is damaged and the next line says so.
        tables = set(inspect(connection).get_table_names()) - {"alembic_version"}
        if tables:
            raise SchemaError(
                f"{describe(connection)} is not a registry: it has the table '{min(tables)}' and "
                "no schema revision; set HUB_REGISTRY to a database of its own"
            ) from None
        return None


def check_revision(connection: Connection, revision: str) -> None:
    """Raises SchemaError where the schema is older or newer than this program's."""
    if revision == REVISION:
        return
    where = describe(connection)
    if revision in find_revisions():
        raise SchemaError(
            f"{where} has schema {revision} and this version of hub needs {REVISION}; "
            "run `hub doctor --upgrade`"
        )
    raise SchemaError(
        f"{where} has schema {revision}, which is newer than {REVISION}, the one that this "
        "version of hub knows; run `pip install -U pefthub`"
    )


def find_revisions() -> list[str]:
    """Every revision that this program knows, newest first."""
    from alembic.script import ScriptDirectory

    scripts = ScriptDirectory(str(Path(__file__).parent / "migrations"))
    return [script.revision for script in scripts.walk_revisions()]


def upgrade_schema(connection: Connection) -> None:
    """Make the tables or bring them up to `REVISION`, in the connection's transaction. Raises
    SchemaError where the schema is newer, or the tables are not ours."""
    from alembic import command

    revision = read_revision(connection)
    if revision is not None and revision not in find_revisions():
        check_revision(connection, revision)
    command.upgrade(make_config(connection), "head")


def make_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration, for migrations that run on `connection`."""
    from alembic.config import Config

    config = Config()
    folder = str(Path(__file__).parent / "migrations")
    config.set_main_option("script_location", folder.replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config


def describe(connection: Connection) -> str:
    """The database, without its password."""
    return str(connection.get_execution_options().get("hub_label", connection.engine.url))
