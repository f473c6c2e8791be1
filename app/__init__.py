"""What the pages share, and the HTTP API. Asks `db`, never the engine's machinery (`app.services` and `app.jobs` excepted)."""
