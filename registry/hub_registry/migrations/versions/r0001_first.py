"""The first schema: tables, and the triggers that keep what was written as it was.

The foreign keys, unique and check constraints are the tables' own. The triggers add that rows
are written once, that a version is closed when its last file is in, and that the numbers of an
adapter have no gaps.
"""

import sqlalchemy as sa
from alembic import op

revision = "r0001"
down_revision = None
branch_labels = None
depends_on = None

# Table, the key that names a row, and what is said to who would change one.
WRITTEN_ONCE = (
    ("base_model", ("id", "digest"), "a base identity never changes"),
    ("task", ("id", "name"), "a task never changes"),
    ("version", ("id", "adapter_id, number", "adapter_id, digest"), "a version never changes"),
    ("version_file", ("version_id, name",), "the files of a version never change"),
    ("lineage", ("child_id, parent_id",), "the parents of a version never change"),
    ("alias_history", ("id",), "the history of aliases is append-only"),
    ("metric", ("id",), "a measurement never changes: add another"),
    ("publication", ("id",), "a publication never changes: add another"),
)

# Table, name, when it looks, the condition that refuses the row, and the message. The conditions
# are the same SQL on both databases.
LAST_NUMBER = "SELECT coalesce(max(number), 0) FROM version WHERE adapter_id = NEW."
CONDITIONS = (
    (
        "adapter",
        "counts_from_one",
        "INSERT",
        "NEW.next_version <> 1",
        "the numbers of an adapter begin with 1",
    ),
    (
        "adapter",
        "keeps_name",
        "UPDATE",
        "NEW.id <> OLD.id OR NEW.name <> OLD.name",
        "the name of an adapter never changes",
    ),
    (
        "adapter",
        "counts_by_one",
        "UPDATE",
        f"NEW.next_version - ({LAST_NUMBER}id) NOT IN (1, 2)",
        "the numbers of an adapter are never used again and have no gaps",
    ),
    (
        "version",
        "has_next_number",
        "INSERT",
        f"NEW.number <> ({LAST_NUMBER}adapter_id) + 1",
        "the numbers of an adapter are never used again and have no gaps",
    ),
    (
        "version_file",
        "fits_version",
        "INSERT",
        "(SELECT count(*) FROM version_file WHERE version_id = NEW.version_id)"
        " >= (SELECT file_count FROM version WHERE id = NEW.version_id)",
        "the files of a version never change",
    ),
    (
        "lineage",
        "fits_version",
        "INSERT",
        "(SELECT count(*) FROM lineage WHERE child_id = NEW.child_id)"
        " >= (SELECT parent_count FROM version WHERE id = NEW.child_id)",
        "the parents of a version never change",
    ),
)

# SQLite checks foreign keys only on connections that ask for it, and these must hold whoever
# writes.
NO_VERSION = (
    "NOT EXISTS (SELECT 1 FROM version WHERE adapter_id = NEW.adapter_id AND number = NEW.number)"
)
SQLITE_CONDITIONS = (
    ("alias", "has_version_insert", "INSERT", NO_VERSION, "the adapter has no such version"),
    ("alias", "has_version_update", "UPDATE", NO_VERSION, "the adapter has no such version"),
    (
        "version_file",
        "has_blob",
        "INSERT",
        "NOT EXISTS (SELECT 1 FROM blob WHERE sha256 = NEW.sha256)",
        "the file has no blob",
    ),
    (
        "blob",
        "is_unused",
        "DELETE",
        "EXISTS (SELECT 1 FROM version_file WHERE sha256 = OLD.sha256)",
        "a version has this blob",
    ),
)


def upgrade() -> None:
    op.create_table(
        "adapter",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("next_version", sa.Integer(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("length(name) BETWEEN 1 AND 128", name=op.f("ck_adapter_name")),
        sa.CheckConstraint("next_version >= 1", name=op.f("ck_adapter_next_version")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_adapter")),
        sa.UniqueConstraint("name", name=op.f("uq_adapter_name")),
    )
    op.create_table(
        "base_model",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("label", sa.Text(), nullable=False),
        sa.Column("repo", sa.Text(), nullable=True),
        sa.Column("revision", sa.Text(), nullable=True),
        sa.Column("architecture", sa.Text(), nullable=False),
        sa.Column("precision", sa.Text(), nullable=False),
        sa.Column("quantization", sa.Text(), nullable=True),
        sa.Column("identity", sa.JSON(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("length(digest) = 64", name=op.f("ck_base_model_digest")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_base_model")),
        sa.UniqueConstraint("digest", name=op.f("uq_base_model_digest")),
    )
    op.create_index(op.f("ix_base_model_repo"), "base_model", ["repo"], unique=False)
    op.create_table(
        "blob",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("length(sha256) = 64", name=op.f("ck_blob_sha256")),
        sa.CheckConstraint("size >= 0", name=op.f("ck_blob_size")),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_blob")),
    )
    op.create_table(
        "task",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_task")),
        sa.UniqueConstraint("name", name=op.f("uq_task_name")),
    )
    op.create_table(
        "version",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=128), nullable=False),
        sa.Column("method", sa.String(length=128), nullable=False),
        sa.Column("task_id", sa.Integer(), nullable=True),
        sa.Column("base_model_id", sa.Integer(), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("file_count", sa.Integer(), nullable=False),
        sa.Column("parent_count", sa.Integer(), nullable=False),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("kind IN ('adapter', 'composition')", name=op.f("ck_version_kind")),
        sa.CheckConstraint("file_count >= 1", name=op.f("ck_version_file_count")),
        sa.CheckConstraint("length(digest) = 64", name=op.f("ck_version_digest")),
        sa.CheckConstraint("number >= 1", name=op.f("ck_version_number")),
        sa.CheckConstraint("parent_count >= 0", name=op.f("ck_version_parent_count")),
        sa.ForeignKeyConstraint(
            ["adapter_id"], ["adapter.id"], name=op.f("fk_version_adapter_id_adapter")
        ),
        sa.ForeignKeyConstraint(
            ["base_model_id"], ["base_model.id"], name=op.f("fk_version_base_model_id_base_model")
        ),
        sa.ForeignKeyConstraint(["task_id"], ["task.id"], name=op.f("fk_version_task_id_task")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_version")),
        sa.UniqueConstraint("adapter_id", "digest", name=op.f("uq_version_adapter_id_digest")),
        sa.UniqueConstraint("adapter_id", "number", name=op.f("uq_version_adapter_id_number")),
    )
    op.create_index(op.f("ix_version_base_model_id"), "version", ["base_model_id"], unique=False)
    op.create_index(op.f("ix_version_task_id"), "version", ["task_id"], unique=False)
    op.create_table(
        "alias",
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.CheckConstraint("name <> 'latest'", name=op.f("ck_alias_not_latest")),
        sa.CheckConstraint("trim(name, '0123456789') <> ''", name=op.f("ck_alias_not_a_number")),
        sa.ForeignKeyConstraint(
            ["adapter_id", "number"],
            ["version.adapter_id", "version.number"],
            name=op.f("fk_alias_adapter_id_number_version"),
        ),
        sa.ForeignKeyConstraint(
            ["adapter_id"], ["adapter.id"], name=op.f("fk_alias_adapter_id_adapter")
        ),
        sa.PrimaryKeyConstraint("adapter_id", "name", name=op.f("pk_alias")),
    )
    op.create_index(
        op.f("ix_alias_adapter_id_number"), "alias", ["adapter_id", "number"], unique=False
    )
    op.create_table(
        "alias_history",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("adapter_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("number", sa.Integer(), nullable=True),
        sa.Column("previous", sa.Integer(), nullable=True),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("note", sa.Text(), nullable=True),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "number IS NOT NULL OR previous IS NOT NULL", name=op.f("ck_alias_history_moved")
        ),
        sa.ForeignKeyConstraint(
            ["adapter_id", "number"],
            ["version.adapter_id", "version.number"],
            name=op.f("fk_alias_history_adapter_id_number_version"),
        ),
        sa.ForeignKeyConstraint(
            ["adapter_id", "previous"],
            ["version.adapter_id", "version.number"],
            name=op.f("fk_alias_history_adapter_id_previous_version"),
        ),
        sa.ForeignKeyConstraint(
            ["adapter_id"], ["adapter.id"], name=op.f("fk_alias_history_adapter_id_adapter")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_alias_history")),
    )
    op.create_index(
        op.f("ix_alias_history_adapter_id"), "alias_history", ["adapter_id"], unique=False
    )
    op.create_table(
        "lineage",
        sa.Column("child_id", sa.Integer(), nullable=False),
        sa.Column("parent_id", sa.Integer(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.CheckConstraint("parent_id < child_id", name=op.f("ck_lineage_parent_is_older")),
        sa.ForeignKeyConstraint(
            ["child_id"], ["version.id"], name=op.f("fk_lineage_child_id_version")
        ),
        sa.ForeignKeyConstraint(
            ["parent_id"], ["version.id"], name=op.f("fk_lineage_parent_id_version")
        ),
        sa.PrimaryKeyConstraint("child_id", "parent_id", name=op.f("pk_lineage")),
    )
    op.create_index(op.f("ix_lineage_parent_id"), "lineage", ["parent_id"], unique=False)
    op.create_table(
        "metric",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.Column("dataset", sa.Text(), nullable=True),
        sa.Column("samples", sa.BigInteger(), nullable=True),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("samples >= 0", name=op.f("ck_metric_samples")),
        sa.ForeignKeyConstraint(
            ["version_id"], ["version.id"], name=op.f("fk_metric_version_id_version")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_metric")),
    )
    op.create_index(op.f("ix_metric_name_value"), "metric", ["name", "value"], unique=False)
    op.create_index(op.f("ix_metric_version_id"), "metric", ["version_id"], unique=False)
    op.create_table(
        "publication",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("remote", sa.Text(), nullable=False),
        sa.Column("revision", sa.Text(), nullable=False),
        sa.Column("author", sa.Text(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["version_id"], ["version.id"], name=op.f("fk_publication_version_id_version")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_publication")),
    )
    op.create_index(op.f("ix_publication_version_id"), "publication", ["version_id"], unique=False)
    op.create_table(
        "version_file",
        sa.Column("version_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(
            ["sha256"], ["blob.sha256"], name=op.f("fk_version_file_sha256_blob")
        ),
        sa.ForeignKeyConstraint(
            ["version_id"], ["version.id"], name=op.f("fk_version_file_version_id_version")
        ),
        sa.PrimaryKeyConstraint("version_id", "name", name=op.f("pk_version_file")),
    )
    op.create_index(op.f("ix_version_file_sha256"), "version_file", ["sha256"], unique=False)

    if op.get_context().dialect.name == "sqlite":
        create_sqlite_triggers()
    else:
        create_postgresql_triggers()


def create_sqlite_triggers() -> None:
    for table, keys, message in WRITTEN_ONCE:
        refuse_on_sqlite(table, "no_update", "UPDATE", "1", message)
        refuse_on_sqlite(table, "no_delete", "DELETE", "1", message)
        refuse_replacing(table, keys, message)
    refuse_on_sqlite("blob", "no_update", "UPDATE", "1", "a blob never changes")
    refuse_replacing("blob", ("sha256",), "a blob never changes")
    refuse_on_sqlite("adapter", "no_delete", "DELETE", "1", "an adapter keeps its numbers")
    refuse_replacing("adapter", ("id", "name"), "an adapter keeps its numbers")
    for condition in CONDITIONS + SQLITE_CONDITIONS:
        refuse_on_sqlite(*condition)


def refuse_on_sqlite(table: str, name: str, moment: str, condition: str, message: str) -> None:
    op.execute(
        f"CREATE TRIGGER tr_{table}_{name} BEFORE {moment} ON {table} FOR EACH ROW"
        f" WHEN {condition} BEGIN SELECT RAISE(ABORT, '{message}'); END"
    )


def refuse_replacing(table: str, keys: tuple[str, ...], message: str) -> None:
    """`INSERT OR REPLACE` deletes rows without a word to the triggers on DELETE."""
    same = " OR ".join(
        f"({key}) = ({', '.join('NEW.' + column for column in key.split(', '))})" for key in keys
    )
    condition = f"EXISTS (SELECT 1 FROM {table} WHERE {same})"  # noqa: S608 - names of ours
    refuse_on_sqlite(table, "no_replace", "INSERT", condition, message)


def create_postgresql_triggers() -> None:
    op.execute(
        "CREATE FUNCTION hub_refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE integrity_constraint_violation USING MESSAGE = TG_ARGV[0];"
        " END $$"
    )
    for table, _, message in WRITTEN_ONCE:
        refuse_on_postgresql(table, "no_update", "UPDATE", message)
        refuse_on_postgresql(table, "no_delete", "DELETE OR TRUNCATE", message)
    refuse_on_postgresql("blob", "no_update", "UPDATE OR TRUNCATE", "a blob never changes")
    refuse_on_postgresql(
        "adapter", "no_delete", "DELETE OR TRUNCATE", "an adapter keeps its numbers"
    )
    for table, name, moment, condition, message in CONDITIONS:
        op.execute(
            f"CREATE FUNCTION hub_{table}_{name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            f" IF {condition} THEN RAISE integrity_constraint_violation"
            f" USING MESSAGE = '{message}'; END IF; RETURN NEW; END $$"
        )
        op.execute(
            f"CREATE TRIGGER tr_{table}_{name} BEFORE {moment} ON {table}"
            f" FOR EACH ROW EXECUTE FUNCTION hub_{table}_{name}()"
        )


def refuse_on_postgresql(table: str, name: str, moment: str, message: str) -> None:
    op.execute(
        f"CREATE TRIGGER tr_{table}_{name} BEFORE {moment} ON {table}"
        f" FOR EACH STATEMENT EXECUTE FUNCTION hub_refuse('{message}')"
    )


def downgrade() -> None:
    tables = (
        "publication",
        "metric",
        "lineage",
        "version_file",
        "alias_history",
        "alias",
        "version",
        "task",
        "blob",
        "base_model",
        "adapter",
    )
    for table in tables:
        op.drop_table(table)  # its indexes and triggers go with it
    if op.get_context().dialect.name != "sqlite":
        for table, name, *_ in CONDITIONS:
            op.execute(f"DROP FUNCTION hub_{table}_{name}()")
        op.execute("DROP FUNCTION hub_refuse()")
