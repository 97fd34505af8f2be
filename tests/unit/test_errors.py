"""Errors are part of the contract: scripts read the exit code, people read the message."""

from __future__ import annotations

import pytest

from sned import errors
from sned.errors import MissingExtraError, SnedError

EXIT_CODES = {
    "ConfigError": 2,
    "UnsupportedModelError": 3,
    "PlanError": 4,
    "BudgetError": 5,
    "DataError": 6,
    "NumericalError": 7,
    "CheckpointError": 8,
    "MissingExtraError": 9,
    "VerificationError": 10,
}


def test_every_error_has_its_documented_exit_code() -> None:
    classes = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert {name: kind.exit_code for name, kind in classes.items()} == {"SnedError": 1, **EXIT_CODES}


@pytest.mark.parametrize("name", EXIT_CODES)
def test_every_error_can_be_caught_as_one(name: str) -> None:
    assert issubclass(getattr(errors, name), SnedError)


def test_the_remedy_follows_the_message() -> None:
    error = SnedError("model.safetensors is cut short", hint="download it again")
    assert str(error) == "model.safetensors is cut short\n  hint: download it again"
    assert error.hint == "download it again"


def test_without_a_remedy_the_message_stands_alone() -> None:
    assert str(SnedError("layer 3 holds NaN")) == "layer 3 holds NaN"


def test_a_missing_extra_prints_the_line_to_type() -> None:
    message = str(MissingExtraError("gguf", "gguf", purpose="Reading a GGUF file"))
    assert message.startswith("Reading a GGUF file needs the package 'gguf'")
    assert "pip install 'sned[gguf]'" in message
