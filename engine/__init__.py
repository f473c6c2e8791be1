"""Tensors and numbers: specs, experiments, results and evidence. Knows nothing of pages, HTTP or SQL."""
