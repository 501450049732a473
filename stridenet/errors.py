"""What goes wrong, said in one line: what was found, where, and what would help."""


class StrideEliminationError(ValueError):
    """The network, or an input, that has no unit-stride form here; says where and what would help."""


class NotEqualError(StrideEliminationError):
    """A converted network or file is not equal to its original; names the layer or node."""


class InputError(ValueError):
    """What the user gave, or the machine lacks; one line that names the value and the cure."""
