"""Which photos a report shows: chosen by rule from the predictions, so that the same run shows the same photos."""

import numpy as np

from bincounter.inspect.run_folder import Predictions


def sample(predictions: Predictions, photos: int) -> Predictions:
    """Draw photos at random, the same ones every time, ordered by count."""
    size = min(photos, len(predictions.ids))
    drawn = np.random.default_rng(0).choice(len(predictions.ids), size, replace=False)
    return predictions.rows(drawn[np.lexsort((drawn, predictions.counts[drawn]))])


def mistakes(predictions: Predictions, photos: int) -> Predictions:
    """Take the wrong answers that gave the true count the least probability, the worst first."""
    wrong = np.flatnonzero(predictions.counts != predictions.predicted)
    order = np.argsort(predictions.probability_of_truth()[wrong], kind="stable")
    return predictions.rows(wrong[order][:photos])


def look_closer(predictions: Predictions, each: int = 3) -> Predictions:
    """Take the surest right answers, of different counts where possible, then the worst mistakes."""
    right = np.flatnonzero(predictions.counts == predictions.predicted)
    surest = right[np.argsort(-predictions.probability_of_truth()[right], kind="stable")]
    _, first = np.unique(predictions.counts[surest], return_index=True)
    preferred = surest[np.sort(first)]
    others = surest[~np.isin(surest, preferred)]
    chosen = np.concatenate([preferred, others])[:each]
    worst = mistakes(predictions, each)
    wrong = np.flatnonzero(np.isin(predictions.ids, worst.ids) & (predictions.counts != predictions.predicted))
    return predictions.rows(np.concatenate([chosen, wrong]))
