"""What made a run: its source, kept and compared, and the identity of run and sessions."""
