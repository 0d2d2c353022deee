"""What a registered configuration fault says."""

from __future__ import annotations

from typing import NamedTuple


class Rule(NamedTuple):
    """One rule a configuration has to keep.

    Attributes:
        title: The rule itself, one sentence without a full stop; the head of the message.
        why: Why the rule exists.
        fix: What to change.
    """

    title: str
    why: str
    fix: str
