"""Real data sets from this machine's files, and the small problems that theory is tested on."""

from driftlab.data import problems, relations, wordnet
from driftlab.data.dataset import Batch, DataError, Dataset
from driftlab.data.loading import load, names
from driftlab.data.separation import MaxMargin, NotSeparableError, max_margin

__all__ = [
    "Batch",
    "DataError",
    "Dataset",
    "MaxMargin",
    "NotSeparableError",
    "load",
    "max_margin",
    "names",
    "problems",
    "relations",
    "wordnet",
]
