"""Words in: datasets, and the small closed world that the shipped model was trained on. Imports without torch."""
