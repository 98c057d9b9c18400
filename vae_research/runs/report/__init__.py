"""What a run says: config.json, the screen, figures and tables."""
