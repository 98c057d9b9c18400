"""Keras callbacks: what goes to TensorBoard, to metrics.jsonl and to the screen.

Each works alone with plain Keras `fit`.
"""
