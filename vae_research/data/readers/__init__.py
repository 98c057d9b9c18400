"""One module per file format, and the checks that come before reading."""
