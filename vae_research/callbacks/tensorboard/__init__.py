"""Event files: protocol buffers, background writing and drawing. Not meant to be extended."""
