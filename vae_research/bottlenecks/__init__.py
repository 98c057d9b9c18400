"""Bottlenecks. A new one is a subclass of `Bottleneck`."""
