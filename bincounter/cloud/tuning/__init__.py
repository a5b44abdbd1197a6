"""Hyperparameter tuning jobs: requested, remembered, followed, and fetched."""
