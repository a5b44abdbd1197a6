"""SageMaker endpoints: their requests, their course, their cost, and how they are taken down."""
