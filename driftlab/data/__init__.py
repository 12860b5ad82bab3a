"""Real data sets from this machine's files, and the small problems that theory is tested on."""

from driftlab.data import problems, relations, wordnet
from driftlab.data.dataset import Batch, DataError, Dataset
from driftlab.data.loading import load, names

__all__ = ["Batch", "DataError", "Dataset", "load", "names", "problems", "relations", "wordnet"]
