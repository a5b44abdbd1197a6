"""An objective of your own: Poisson regression, with one output for the mean of the distribution."""

import torch
from torch import Tensor

from bincounter.model.objectives import Objective


class Poisson(Objective):
    """Poisson distribution over counts, truncated to the support.

    Args:
        counts: the support, which bincounter passes.
    """

    out_features = 1

    def log_probabilities(self, outputs: Tensor) -> Tensor:
        """Log-likelihoods of the counts for the logarithm of the mean, ``float[B, 1] -> float[B, K]``."""
        log_mean = outputs.clamp(-5, 5)
        return (self.support * log_mean - torch.lgamma(self.support + 1)).log_softmax(1)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """``float[B, 1] -> float[B, K]``, rows that sum to 1."""
        return self.log_probabilities(outputs).exp()

    def loss(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Cross entropy, ``float[B, 1], float[B, K] -> float[B]`` in nats."""
        return -(target * self.log_probabilities(outputs)).sum(1)
