"""What runs inside a SageMaker training job."""
