"""Fixtures for all tests live in one plugin file per area; here is only what the whole run has in common."""

from collections import defaultdict

import pytest

pytest_plugins = ["tests.plugin_engine", "tests.plugin_db", "tests.plugin_app"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Says how long each file took, slowest first."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[report.nodeid.partition("::")[0]] += report.duration
    terminalreporter.section("seconds per file")
    for file, spent in sorted(seconds.items(), key=lambda entry: -entry[1]):
        terminalreporter.write_line(f"{spent:8.1f}  {file}")
