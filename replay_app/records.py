"""What all records of the internal topics share: bounded members, and a check before writing.

Any program with access to Kafka can write to these topics, and so can a fault of this program. So a
record is read as if a stranger had written it: every number, time and list has a bound. A record
that does not fit its model is passed over.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field

from replay_app.commands import in_utc

MAX_SHARDS = 1000
"""Shards of a replay. A command asks for at most 256; each type of aggregate ids adds a few."""
MAX_NAMES = 10_000
"""Names in a count by type or by topic. A session with many shards has about 3,000."""
MAX_LIST = 1000
"""Items of other lists, such as warnings."""

Count = Annotated[int, Field(ge=0, le=2**53)]
"""A number of events, bytes, epochs, slices or offsets. JSON readers keep such a number exact."""
Moment = Annotated[AwareDatetime, AfterValidator(in_utc)]
"""A point in time. Times without a zone cannot be compared with the clock."""
Counts = Annotated[dict[str, Count], Field(max_length=MAX_NAMES)]
"""Numbers of events by name."""
Texts = Annotated[tuple[str, ...], Field(max_length=MAX_LIST)]


class Record(BaseModel):
    """A record of an internal topic."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    leaves_out_defaults: ClassVar[bool] = True
    """Whether members with their default value are left out of the record."""

    def encode(self) -> bytes:
        """Return the record's value on Kafka.

        Raises
        ------
        ValueError
            When the value could not be read again, such as a number outside its bounds. A record
            that no worker can read would stop what it belongs to.

        """
        value = self.model_dump_json(exclude_defaults=self.leaves_out_defaults).encode()
        type(self).model_validate_json(value)
        return value
