"""Run by Alembic, on the connection and inside the transaction of `database.upgrade`."""

from alembic import context

from ratestream.storage.tables import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
