"""The lab from Python: a model to hold in one's hands, runs as values, and experiments of one's own. What `import philab` offers."""
