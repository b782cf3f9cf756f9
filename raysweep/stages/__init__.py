"""What stages do: read artifacts, run a method, leave an artifact."""
