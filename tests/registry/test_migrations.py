from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, NullPool, create_engine, create_mock_engine, text

from hub_registry import BaseIdentity, Registry, SchemaError, Version, schema, tables
from hub_registry.models import Model

OBJECTS = "SELECT type, name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"


@pytest.fixture
def connection() -> Any:
    with create_engine("sqlite://", poolclass=NullPool).connect() as connection:
        yield connection


def find_objects(connection: Connection, kind: str) -> dict[str, str]:
    rows = connection.execute(text(OBJECTS))
    return {name: sql for found, name, sql in rows if found == kind and name != "alembic_version"}


def sort_lines(sql: str) -> list[str]:
    return sorted(line.strip().rstrip(",") for line in sql.splitlines() if line.strip())


def write_sql(down: bool = False) -> str:
    """What the migrations do on PostgreSQL."""
    config = schema.make_config()
    config.set_main_option("sqlalchemy.url", "postgresql://")
    config.output_buffer = io.StringIO()
    if down:
        command.downgrade(config, f"{schema.REVISION}:base", sql=True)
    else:
        command.upgrade(config, "head", sql=True)
    return config.output_buffer.getvalue()


def test_migrations_and_models_make_the_same_tables(connection: Connection) -> None:
    schema.upgrade_schema(connection)
    assert compare_metadata(MigrationContext.configure(connection), Model.metadata) == []
    with create_engine("sqlite://", poolclass=NullPool).connect() as other:
        Model.metadata.create_all(other)
        for kind in ("table", "index"):
            migrated, modelled = find_objects(connection, kind), find_objects(other, kind)
            assert migrated.keys() == modelled.keys()
            for name, sql in migrated.items():
                assert sort_lines(sql) == sort_lines(modelled[name])


def test_migrations_and_models_make_the_same_tables_on_postgresql() -> None:
    written: list[str] = []
    engine = create_mock_engine(
        "postgresql://", lambda sql, *_: written.append(str(sql.compile(dialect=engine.dialect)))
    )
    Model.metadata.create_all(engine, checkfirst=False)
    migrated = write_sql()
    for sql in written:
        statement = sort_lines(sql)
        name = sql.strip().splitlines()[0]
        assert name in migrated
        found = migrated[migrated.index(name) :].split(";")[0]
        assert sort_lines(found) == statement


def test_alembic_itself_finds_nothing_to_do(registry: Registry) -> None:
    registry.upgrade()
    with registry.database.change_schema() as connection:
        command.check(schema.make_config(connection))


def test_every_constraint_has_a_name() -> None:
    for table in Model.metadata.tables.values():
        for constraint in table.constraints:
            assert constraint.name, (table.name, constraint)


def test_queries_see_the_tables_of_the_models() -> None:
    modelled = Model.metadata.tables
    assert {table.name for table in tables.ALL} == modelled.keys()
    for table in tables.ALL:
        found = {column.name: str(column.type) for column in table.c}
        expected = {column.name: str(column.type) for column in modelled[table.name].c}
        assert found == expected


def test_the_revision_is_the_newest_migration() -> None:
    assert schema.find_revisions()[0] == schema.REVISION


def test_up_down_and_up_again_leaves_nothing_behind(connection: Connection) -> None:
    schema.upgrade_schema(connection)
    first = {kind: find_objects(connection, kind) for kind in ("table", "index", "trigger")}
    assert len(first["trigger"]) > 30
    command.downgrade(schema.make_config(connection), "base")
    for kind in first:
        assert find_objects(connection, kind) == {}
    schema.upgrade_schema(connection)
    assert {kind: find_objects(connection, kind) for kind in first} == first


def test_postgresql_takes_down_what_it_put_up() -> None:
    up, down = write_sql(), write_sql(down=True)
    for kind in ("CREATE TABLE ", "CREATE FUNCTION "):
        made = {part.split()[0].split("(")[0] for part in up.split(kind)[1:]} - {"alembic_version"}
        assert made
        for name in made:
            assert f"DROP {kind.split()[1]} {name}" in down, name


def test_both_databases_refuse_the_same(connection: Connection) -> None:
    schema.upgrade_schema(connection)
    on_postgresql = {part.split()[0] for part in write_sql().split("CREATE TRIGGER ")[1:]}
    on_sqlite = set(find_objects(connection, "trigger"))
    # SQLite alone can replace rows past the other triggers, and forget about foreign keys.
    only_sqlite = {name for name in on_sqlite if name.endswith("_no_replace")} | {
        "tr_alias_has_version_insert",
        "tr_alias_has_version_update",
        "tr_blob_is_unused",
        "tr_version_file_has_blob",
    }
    assert on_sqlite - only_sqlite == on_postgresql


def test_a_registry_is_made_by_the_first_writing(registry: Registry, base: BaseIdentity) -> None:
    registry.add_files({"a.json": b"1"}, name="a", task=None, method="lora", base=base, config={})
    assert (registry.home / "registry.db").is_file()
    with registry.database.read() as connection:
        assert schema.read_revision(connection) == schema.REVISION


def test_reading_a_registry_that_is_not_there_makes_nothing(home: Path) -> None:
    registry = Registry(home)
    assert registry.list() == []
    assert registry.adapters() == []
    assert registry.verify() == []
    assert registry.sweep().temporary == 0
    assert all(finding.level != "error" for finding in registry.check())
    assert not home.exists()


def test_an_older_schema_says_how_to_upgrade(
    registry: Registry,
    add: Callable[..., Version],
    execute: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    add()
    monkeypatch.setattr(schema, "REVISION", "r9999")
    registry = Registry(registry.home)
    for use in (registry.list, lambda: registry.alias("sst2", "a")):
        with pytest.raises(SchemaError, match=r"has schema r0001 .* needs r9999") as caught:
            use()
        assert "hub doctor --upgrade" in str(caught.value)
    assert any("r9999" in finding.text for finding in registry.check())


def test_a_newer_schema_is_left_alone(
    registry: Registry, add: Callable[..., Version], execute: Callable[..., Any]
) -> None:
    add()
    execute("UPDATE alembic_version SET version_num = 'r9999'")
    registry = Registry(registry.home)
    for use in (registry.list, lambda: registry.alias("sst2", "a"), registry.upgrade):
        with pytest.raises(SchemaError, match="newer than r0001") as caught:
            use()
        assert "pip install -U pefthub" in str(caught.value)


def test_another_programs_database_is_left_alone(
    registry: Registry, add: Callable[..., Version], execute: Callable[..., Any]
) -> None:
    registry.home.mkdir()
    execute("CREATE TABLE songs (title)")
    for use in (registry.list, add, registry.upgrade):
        with pytest.raises(SchemaError, match="is not a registry: it has the table 'songs'"):
            use()


def test_an_empty_file_is_an_empty_registry(registry: Registry, add: Any) -> None:
    registry.home.mkdir()
    (registry.home / "registry.db").touch()
    assert registry.list() == []
    assert add().number == 1


def test_upgrade_makes_and_keeps(registry: Registry, add: Any) -> None:
    assert registry.upgrade() == schema.REVISION
    version = add()
    assert registry.upgrade() == schema.REVISION
    assert registry.list() == [version]
