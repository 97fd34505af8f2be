"""The same share of every matrix."""

from __future__ import annotations

from sned.runtime.allocator import Task, allocator
from sned.runtime.context import Context
from sned.runtime.quotas import UNIFORM, Shares


@allocator(paper="", title="Uniform sparsity", needs_tokens=False)
def uniform(_ctx: Context, _task: Task) -> Shares:
    """Give every matrix the same share of zeros."""
    return UNIFORM
