"""What needs a third-party package. Loaded by name and on demand, by `cli` and `loader` alone."""
