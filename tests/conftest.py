"""Fixtures for all tests live in one plugin file per area."""

pytest_plugins = ["tests.plugin_engine", "tests.plugin_db", "tests.plugin_app"]
