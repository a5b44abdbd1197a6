"""Rules on what a run recorded, under the names that SageMaker Debugger's users know."""
