"""A user's jobs, from beginning to end: launch, tune."""
