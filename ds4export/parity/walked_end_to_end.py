"""A whole run by a back end that walks graphs node by node: what is the same whatever computes a node.

Owns the steps of such a run: step inputs by the graph's names, logits only where they are wanted, streams in where the
range of layers takes them. Refuses streams that are missing or that nothing takes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from ds4export.errors import RuntimeInputError
from ds4export.parity.records import step_feeds
from ds4export.parity.subject import MAIN, MTP, Subject
from ds4export.runtime.runner import Limits, Runner, StepInputs, StepResult

STREAMS_IN = "streams_in"


class WalkedEndToEnd(ABC):
    """See `EndToEnd`: its own runner. A subclass keeps the state and walks."""

    def __init__(self, subject: Subject, num_slots: int, max_context: int) -> None:
        self.limits = Limits(subject.manifest.config.vocab_size, num_slots, max_context)
        self._graphs = subject.manifest.graphs

    @abstractmethod
    def _run(self, graph: str, feeds: Mapping[str, Any]) -> StepResult:
        """Walk a graph over `feeds` and the own state, which moves on; arrays, and streams of an earlier result."""

    @abstractmethod
    def close(self) -> None: ...

    @property
    def runner(self) -> Runner:
        return self

    @property
    def has_mtp(self) -> bool:
        return MTP in self._graphs

    def step(
        self, inputs: StepInputs, *, want_logits: bool = True, streams_in: Any = None
    ) -> StepResult:
        """Run the main graph; without logits the head still runs, for no row.

        Raises:
            RuntimeInputError: the range of layers needs streams and has none, or the other way round.
            ParityError: a node cannot be computed.
        """
        wanted = inputs if want_logits else inputs.without_logits()
        feeds: dict[str, Any] = {**step_feeds(wanted, "ids")}
        if streams_in is not None:
            feeds[STREAMS_IN] = streams_in
        _check_streams(STREAMS_IN in {i.name for i in self._graphs[MAIN].inputs}, feeds)
        result = self._run(MAIN, feeds)
        return result if want_logits else StepResult(None, result.streams)

    def mtp_step(self, inputs: StepInputs, streams: Any) -> StepResult:
        """Run the MTP graph; `inputs.ids` are the ids one position later.

        Raises:
            ParityError: a node cannot be computed.
        """
        return self._run(MTP, {**step_feeds(inputs, "next_ids"), "streams": streams})


def _check_streams(wanted: bool, feeds: Mapping[str, Any]) -> None:
    given = STREAMS_IN in feeds
    if wanted != given:
        raise RuntimeInputError(
            "the streams of the layers before are missing"
            if wanted
            else "streams are given to a range that begins with the first layer",
            where=f"`{STREAMS_IN}`",
            found="streams" if given else "nothing",
            expected="`streams` of the step before" if wanted else "nothing",
        )
