"""The method: from a slice to its healthy counterpart and what changed."""
