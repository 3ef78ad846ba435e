"""Runs the migrations on the connection that `hub_registry.schema` hands over, in its
transaction; or, offline, prints their SQL."""

from alembic import context

from hub_registry.models import Model

if context.is_offline_mode():
    context.configure(
        url=context.config.get_main_option("sqlalchemy.url"),
        target_metadata=Model.metadata,
        literal_binds=True,
    )
else:
    context.configure(
        connection=context.config.attributes["connection"],
        target_metadata=Model.metadata,
        transactional_ddl=True,
        compare_type=True,
    )
with context.begin_transaction():
    context.run_migrations()
