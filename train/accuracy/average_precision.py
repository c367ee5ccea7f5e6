"""One number for how good a ranking is: the area under precision by recall."""

import numpy as np


def average_precision(precision_n: np.ndarray, recall_n: np.ndarray) -> float:
    """Of a ranking, from its best on; at each recall the precision is the best there or at any higher one (Pascal VOC's since
    2010, ActivityNet's and AVA's). Nothing is under what is never recalled; of no ranking 0."""
    kept_n = np.maximum.accumulate(precision_n[::-1])[::-1]
    return float(np.sum(np.diff(recall_n, prepend=0.0) * kept_n))
