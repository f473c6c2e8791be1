"""The only place with SQL. Callers own transactions; every question takes the viewer."""
