"""One module per kind of spec: what is asked of a model, and how the answer is measured."""
