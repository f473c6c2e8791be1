"""Models: where their files are, what they weigh, and how they are loaded."""
