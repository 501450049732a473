"""What a proof says."""

from stridenet.errors import StrideEliminationError


class NotEqualError(StrideEliminationError):
    """A converted file is not equal to its original; names the node."""
