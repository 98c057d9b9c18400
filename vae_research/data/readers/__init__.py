"""One module per file format, and the checks made before a file is read."""
