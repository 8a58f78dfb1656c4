"""What a command says instead of a traceback."""


class UserError(Exception):
    """A mistake of the user's, in words."""
