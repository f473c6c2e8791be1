"""Alembic's entry: works on the connection that `db.migrate` hands over."""

from alembic import context

from db.schema import Table


def ours(_thing: object, name: str | None, type_: str, *_more: object) -> bool:
    return not (type_ == "table" and name is not None and name.startswith(("procrastinate_", "alembic_")))


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Table.metadata,
    include_object=ours,
    compare_type=True,
    compare_server_default=False,
    transactional_ddl=True,
)
context.run_migrations()
