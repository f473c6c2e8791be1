"""The checks of the self-test, each a small function that reaches the same numbers in two ways."""
