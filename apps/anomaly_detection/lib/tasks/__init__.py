"""What clients can ask for: inference, triage, scores."""
