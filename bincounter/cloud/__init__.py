"""SageMaker: the jobs, what is shipped to them, what they cost, and the rehearsal that runs them here."""
