"""SageMaker endpoints and batch transform jobs that serve a packed checkpoint."""
