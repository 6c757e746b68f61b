"""Fine-tuning of a model's networks from the studies' labels, by the bundle's own training configs."""
