"""Coverage-guided fuzzing of what strangers can reach: frames of every direction, and the broker itself."""
