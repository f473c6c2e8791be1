"""Commands. They import the engine and the database, never the app."""
