"""Where in a forward pass to look, and how to change it."""
