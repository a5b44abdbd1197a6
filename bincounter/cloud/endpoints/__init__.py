"""A packed checkpoint behind a SageMaker endpoint: its requests, its price, its life, and its answers."""
