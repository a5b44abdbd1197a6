"""One search space -> an Optuna study or a SageMaker tuning job."""
