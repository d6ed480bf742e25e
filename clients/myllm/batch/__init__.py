"""Many requests at once: `client.batch(…)`, and what `myllm run-batch` is made of."""

from .request import BatchResult
from .run import abatch, batch

__all__ = ["BatchResult", "abatch", "batch"]
