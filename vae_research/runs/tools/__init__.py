"""Programs that examine a run afterwards."""
