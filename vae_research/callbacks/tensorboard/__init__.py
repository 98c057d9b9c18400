"""Event files: protocol buffers, background writing and drawing. Nobody extends these."""
