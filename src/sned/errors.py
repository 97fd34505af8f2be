"""Every error a user can meet, with its documented exit code. Imports nothing.

An error is one message: what was wrong, where, and a remedy in `hint`.
"""

from __future__ import annotations


class SnedError(Exception):
    """Base of all errors that reach a user."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        """Return the message followed by the remedy, as it is printed."""
        message = super().__str__()
        return f"{message}\n  hint: {self.hint}" if self.hint else message


class ConfigError(SnedError):
    """A command, recipe or option is wrong."""

    exit_code = 2


class UnsupportedModelError(SnedError):
    """The architecture is unknown, or cannot do what was asked."""

    exit_code = 3


class PlanError(SnedError):
    """A plan is malformed, from a newer sned, or made for another model."""

    exit_code = 4


class BudgetError(SnedError):
    """The budget cannot be reached; the message names the closest that can."""

    exit_code = 5


class DataError(SnedError):
    """Calibration or evaluation text is missing, too short or overlapping."""

    exit_code = 6


class NumericalError(SnedError):
    """A tensor holds NaN or infinity, or a system could not be solved."""

    exit_code = 7


class CheckpointError(SnedError):
    """A checkpoint is missing, corrupt, or could not be written."""

    exit_code = 8


class MissingExtraError(SnedError):
    """An optional dependency is not installed."""

    exit_code = 9

    def __init__(self, package: str, extra: str, *, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed.",
            hint=f"pip install 'sned[{extra}]'",
        )


class VerificationError(SnedError):
    """A saved checkpoint does not reproduce the planned model."""

    exit_code = 10
