"""What a run writes and prints: config.json, the screen, figures and saved networks."""
