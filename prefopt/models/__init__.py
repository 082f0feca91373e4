"""Models and adapters by name: load, train, export."""
