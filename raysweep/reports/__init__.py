"""Reports: pure functions of the records."""
