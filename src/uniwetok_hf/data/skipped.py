# Copyright 2026 The uniwetok-hf contributors. Licensed under the Apache License, Version 2.0.
"""What is left out of data because it can't be used: named, counted, and an error when it is too much."""

from collections.abc import Sequence


MAX_SHARE = 0.01  # of all items that may be left out, where nothing else is said
FEW = 10  # so many are never too many
NUM_SHOWN = 10  # names in an error


class SkippedItems:
    """Counts the items that were read and those of them that were left out.

    Args:
        max_share: largest share of the items that may be left out; up to `FEW` always may.
        field: setting that errors name.
        where: where all of them are listed, for errors.

    Raises:
        ValueError: for a share that is not from 0 to 1.
    """

    def __init__(self, max_share: float = MAX_SHARE, field: str = "max_skipped_share", where: str = ""):
        if not 0 <= max_share <= 1:
            raise ValueError(f"`{field}` must be from 0 to 1, got {max_share}.")
        self.max_share, self.field, self.where = max_share, field, where
        self.count, self.num_read, self.shown = 0, 0, []

    def add(self, reasons: Sequence[str], num_read: int) -> None:
        """Adds `num_read` items, of which those of `reasons` were left out.

        Raises:
            ValueError: when it is too many in all; the message lists the first of them.
        """
        self.count += len(reasons)
        self.num_read += num_read
        self.shown += reasons[: NUM_SHOWN - len(self.shown)]
        if reasons and self.count > max(FEW, self.max_share * self.num_read):
            listed = f" (all are listed in {self.where})" if self.where else ""
            raise ValueError(
                f"`{self.field}`={self.max_share}: {self.count} of {self.num_read} samples can't be used{listed}. The "
                f"first: {'; '.join(self.shown)}. Mend the data, or allow a larger share, and go on."
            )

    def state_dict(self) -> dict:
        """The counts and the first reasons, as values for JSON."""
        return {"count": self.count, "num_read": self.num_read, "shown": list(self.shown)}

    def load_state_dict(self, state: dict) -> None:
        self.count, self.num_read, self.shown = state["count"], state["num_read"], list(state["shown"])
