"""Which collected tests are cases. A worker announces it to the controller before any test runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectedCases:
    """The tests of one run that belong to this plugin, after deselection and sharding.

    Attributes:
        cases: ``case_id`` of every sensitivity case, by node id.
        schemes: ``case_id`` of every scheme, by node id.
        others: node ids of structure cases and of tests that use our fixtures without a parameter.
        num_selected: cases, schemes and structure cases of all shards.
        problem: why none of them can run, in the words of an error; empty if they can.
    """

    cases: Mapping[str, str] = field(default_factory=dict)
    schemes: Mapping[str, str] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    num_selected: int = 0
    problem: str = ""

    def dump(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def load(cls, text: str) -> CollectedCases:
        """Read what ``dump`` wrote."""
        found = json.loads(text)
        return cls(**{**found, "others": tuple(found["others"])})

    @property
    def case_ids(self) -> Mapping[str, str]:
        """``case_id`` by node id, of cases and schemes."""
        return {**self.cases, **self.schemes}
