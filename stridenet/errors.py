"""What goes wrong, said in one line: what was found, where, and what would help."""


class StrideEliminationError(ValueError):
    """Raised for a network or an input without a unit-stride form; says where, and what would help."""


class NotEqualError(StrideEliminationError):
    """Raised where a converted network or file is not equal to its original.

    Its text names the layer or node.
    """


class InputError(ValueError):
    """Raised for what a user gave, or what the machine lacks.

    Its text is one line, which names the value and the cure.
    """
