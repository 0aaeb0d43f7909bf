"""Live sequences, text generation and streaming over an artefact."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from ds4export.artefact import open_artefact_folder
from ds4export.errors import ArtefactError, CapacityError, RuntimeInputError
from ds4export.runtime import Model, StepInputs, StepResult, open_artefact
from ds4export.runtime.runner import Limits
from ds4export.runtime.sampler import Sampling
from ds4export.runtime.score import score
from ds4export.runtime.sequence import PREFILL_CHUNK
from tests.kit.artefacts import copy_artefact, edit_manifest, exported, replace_in_artefact, reseal

GREEDY = Sampling(temperature=0)
PROMPT = "In the beginning"


@pytest.fixture(scope="module")
def nano() -> Iterator[Model]:
    with open_artefact(exported("nano"), num_slots=3, max_context=320, threads=1) as model:
        yield model


def contents(model: Model) -> dict[str, bytes]:
    state: dict[str, np.ndarray] = model.runner.state  # type: ignore[attr-defined]
    return {name: array.tobytes() for name, array in state.items()}


def test_greedy_text_is_what_one_prefill_of_it_predicts(nano: Model) -> None:
    """Token by token against the whole text at once: the most likely id at each position is the next id."""
    prompt = nano.encode(PROMPT)
    ids = list(nano.stream_ids(prompt, max_new_tokens=40, sampling=GREEDY))
    assert len(ids) == 40
    whole = np.array([[*prompt, *ids]])
    logits = score(nano.runner, whole, prefill=whole.shape[1]).logits[0]
    assert logits[len(prompt) - 1 : -1].argmax(-1).tolist() == ids
    assert nano.generate(PROMPT, max_new_tokens=40, sampling=GREEDY) == nano.tokenizer.decode(ids)


def test_nano_writes_english_words(nano: Model) -> None:
    words = nano.generate(PROMPT, max_new_tokens=60, sampling=GREEDY).split()
    common = {"the", "of", "and", "And", "in", "to", "that", "LORD", "shall", "unto", "his"}
    assert sum(word in common for word in words) >= len(words) // 4


def test_temperature_zero_and_seeds_are_deterministic(nano: Model) -> None:
    greedy, seeded = (
        [nano.generate(PROMPT, max_new_tokens=25, sampling=s) for _ in range(2)]
        for s in (GREEDY, Sampling(1.0, 0.9, seed=7))
    )
    assert greedy[0] == greedy[1]
    assert seeded[0] == seeded[1]
    others = {nano.generate(PROMPT, max_new_tokens=25, sampling=Sampling(seed=s)) for s in range(4)}
    assert len(others) == 4


def test_a_tiny_top_p_is_greedy(nano: Model) -> None:
    narrow = Sampling(temperature=1.0, top_p=1e-9, seed=3)
    greedy = nano.generate(PROMPT, max_new_tokens=15, sampling=GREEDY)
    assert nano.generate(PROMPT, max_new_tokens=15, sampling=narrow) == greedy


def test_bos_stands_first_and_once(nano: Model) -> None:
    bos = nano.artefact.manifest.config.bos_token_id
    assert nano.encode("x")[0] == bos
    assert nano.encode("")[:1] == [bos]
    written = nano.tokenizer.id_to_token(bos)
    assert nano.encode(f"{written}x") == nano.encode("x")


def test_text_that_is_no_unicode_is_refused(nano: Model) -> None:
    with pytest.raises(RuntimeInputError, match="the text is not valid Unicode"):
        nano.generate("\udcff", max_new_tokens=1)


def test_sequences_side_by_side_give_what_each_gives_alone(nano: Model, rng: Any) -> None:
    """Appends of three sequences in turn, of uneven lengths, through one pool: equal bit for bit."""
    texts = [rng.integers(2, 1000, n).tolist() for n in (90, 41, 140)]
    cuts = [[0, 33, 34, 90], [0, 1, 2, 41], [0, 64, 139, 140]]
    together: list[list[np.ndarray]] = [[], [], []]
    with nano.sequence() as a, nano.sequence() as b, nano.sequence() as c:
        assert len({a.slot, b.slot, c.slot}) == 3
        for turn in range(3):
            for i, sequence in enumerate((a, b, c)):
                begin, end = cuts[i][turn : turn + 2]
                together[i].append(sequence.append(texts[i][begin:end]))
    for text, cut, found in zip(texts, cuts, together, strict=True):
        with nano.sequence() as alone:
            for turn, logits in enumerate(found):
                want = alone.append(text[cut[turn] : cut[turn + 1]])
                np.testing.assert_array_equal(logits, want)


def test_rows_of_one_step_give_what_each_gives_alone(nano: Model, rng: Any) -> None:
    """Two sequences at their own positions in one batch; summed in another order than alone, 1e-5 measured."""
    first, second = (rng.integers(2, 1000, 50).tolist() for _ in range(2))
    with nano.sequence() as a, nano.sequence() as b:
        a.append(first[:47])
        b.append(second[:12])
        got = nano.step([first[47:50], [*second[12:14], 0]], slots=[a.slot, b.slot],
                        positions=[47, 12], num_new=[3, 2]).logits  # fmt: skip
    assert got is not None
    for row, text in zip(got, (first, second[:14]), strict=True):
        with nano.sequence() as alone:
            np.testing.assert_allclose(row[0], alone.append(text), atol=1e-4, rtol=0)


def test_a_slot_is_used_again_and_remembers_nothing(nano: Model, rng: Any) -> None:
    text = rng.integers(2, 1000, 30).tolist()
    with nano.sequence() as sequence:
        slot, want = sequence.slot, sequence.append(text)
        sequence.append(rng.integers(2, 1000, 200).tolist())
    with nano.sequence() as sequence:
        assert sequence.slot == slot
        np.testing.assert_array_equal(sequence.append(text), want)


def test_all_slots_taken(nano: Model) -> None:
    open_ones = [nano.sequence() for _ in range(3)]
    with pytest.raises(CapacityError, match="all slots are taken") as caught:
        nano.sequence()
    assert caught.value.found == "3"
    open_ones[1].close()
    open_ones[1].close()  # twice is once
    with nano.sequence() as again:
        assert again.slot == open_ones[1].slot
        with pytest.raises(CapacityError):
            nano.sequence()
    with pytest.raises(RuntimeInputError, match="the sequence is closed"):
        open_ones[1].append([1])
    for sequence in open_ones:
        sequence.close()


@pytest.mark.parametrize("tokens", [[5] * 311, [5] * 300 + [5000], [], [5, -1]])
def test_an_append_that_cannot_be_whole_writes_nothing(nano: Model, tokens: list[int]) -> None:
    """Neither in its first chunk nor anywhere: the caches keep every byte, the sequence its position."""
    with nano.sequence() as sequence:
        sequence.append([5] * 10)
        before = contents(nano)
        with pytest.raises((CapacityError, RuntimeInputError)):
            sequence.append(tokens)
        assert contents(nano) == before
        assert sequence.position == 10
        sequence.append([5] * 310)
        assert sequence.position == 320


def test_a_prompt_longer_than_the_cache(nano: Model) -> None:
    before = contents(nano)
    with pytest.raises(CapacityError, match="the tokens do not fit the cache") as caught:
        nano.generate("the " * 400, max_new_tokens=1)
    assert "at most 320" in caught.value.expected
    assert contents(nano) == before


@pytest.mark.parametrize("count", [0, -3])
def test_no_tokens_to_write(nano: Model, count: int) -> None:
    with pytest.raises(RuntimeInputError, match="--max-new-tokens is out of range"):
        nano.generate(PROMPT, max_new_tokens=count)


@dataclass
class Scripted:
    """A runner whose most likely next token is written down."""

    script: Sequence[int]
    limits: Limits = field(default_factory=lambda: Limits(1024, 2, 600))
    has_mtp: bool = False
    steps: list[tuple[StepInputs, bool]] = field(default_factory=list)

    def step(
        self, inputs: StepInputs, *, want_logits: bool = True, streams_in: Any = None
    ) -> StepResult:
        self.steps.append((inputs, want_logits))
        if not want_logits:
            return StepResult(None)
        told = sum(wanted for _, wanted in self.steps) - 1
        logits = np.zeros((1, 1, 1024), np.float32)
        logits[0, 0, self.script[told]] = 9
        return StepResult(logits)

    def mtp_step(self, inputs: StepInputs, streams: Any) -> StepResult:
        raise NotImplementedError

    def close(self) -> None:
        pass


def scripted(script: Sequence[int], **options: Any) -> tuple[Model, Scripted]:
    runner = Scripted(script, **options)
    return Model(open_artefact_folder(exported("nano")), runner), runner


def test_generation_stops_at_eos_which_is_not_said() -> None:
    model, runner = scripted([50, 51, 1, 52])
    assert list(model.stream_ids([0, 9], max_new_tokens=10, sampling=GREEDY)) == [50, 51]
    assert len(runner.steps) == 3


def test_no_step_is_made_whose_logits_nobody_needs() -> None:
    model, runner = scripted([50, 51, 52, 53])
    assert list(model.stream_ids([0, 9], max_new_tokens=3, sampling=GREEDY)) == [50, 51, 52]
    assert [i.ids.tolist() for i, _ in runner.steps] == [[[0, 9]], [[50]], [[51]]]
    assert [i.positions.tolist() for i, _ in runner.steps] == [[0], [2], [3]]


def test_generation_stops_at_the_end_of_the_cache() -> None:
    model, _ = scripted([50] * 20, limits=Limits(1024, 1, 6))
    # 4 tokens of the prompt and 2 of its own fill the cache; the last one said needs no place in it.
    assert list(model.stream_ids([0, 9, 9, 9], max_new_tokens=20, sampling=GREEDY)) == [50] * 3


def test_a_long_prompt_goes_in_chunks_without_logits_but_the_last() -> None:
    model, runner = scripted([50, 51])
    length = 2 * PREFILL_CHUNK + 5
    list(model.stream_ids([3] * length, max_new_tokens=2, sampling=GREEDY))
    assert [(i.ids.shape[1], wanted) for i, wanted in runner.steps] == [
        (PREFILL_CHUNK, False),
        (PREFILL_CHUNK, False),
        (5, True),
        (1, True),
    ]


def test_a_stream_that_is_left_gives_its_slot_back() -> None:
    model, _ = scripted([50] * 9)
    for _ in range(5):
        stream = model.stream("x", max_new_tokens=9, sampling=GREEDY)
        next(stream)
        stream.close()
    with model.sequence(), model.sequence():
        pass


def test_characters_are_streamed_whole() -> None:
    model, _ = scripted([])
    ids = model.tokenizer.encode("é🙂!", add_special_tokens=False).ids
    assert len(ids) >= 6, "nano knows no such character: each of its bytes is a token"
    model.runner.script = [*ids, 1]  # type: ignore[attr-defined]
    assert list(model.stream("x", max_new_tokens=20, sampling=GREEDY)) == ["é", "🙂", "!"]


def test_a_character_cut_by_the_end_is_shown_as_such() -> None:
    model, _ = scripted([])
    ids = model.tokenizer.encode("ok🙂", add_special_tokens=False).ids
    model.runner.script = [*ids[:-1], 1]  # type: ignore[attr-defined]
    assert model.generate("x", max_new_tokens=20, sampling=GREEDY) == "ok\ufffd"


def test_a_range_of_layers_without_the_head_cannot_write() -> None:
    with (
        open_artefact(exported("nano", layers=(0, 1)), num_slots=1, threads=1) as model,
        pytest.raises(RuntimeInputError, match="no logits to choose a token from"),
    ):
        model.generate(PROMPT, max_new_tokens=1)


def test_an_artefact_without_a_tokenizer() -> None:
    with (
        open_artefact(exported("tiny-a", layers=(0, 1)), num_slots=1, threads=1) as model,
        pytest.raises(ArtefactError, match="the artefact has no tokenizer") as caught,
    ):
        model.encode("x")
    assert "score" in caught.value.hint


def test_a_broken_tokenizer(tmp_path: Any) -> None:
    folder = copy_artefact(exported("nano", layers=(0, 1)), tmp_path / "copy")
    replace_in_artefact(folder, "tokenizer.json", b'{"model": null}')
    with (
        open_artefact(folder, num_slots=1, threads=1) as model,
        pytest.raises(ArtefactError, match="the tokenizer cannot be read"),
    ):
        model.encode("x")


def test_defaults_come_from_the_manifest(tmp_path: Any) -> None:
    folder = copy_artefact(exported("nano", layers=(0, 1)), tmp_path / "copy")
    edit_manifest(folder, lambda m: m.update(max_context=77, max_batch=2))
    reseal(folder)
    with open_artefact(folder, threads=1) as model:
        assert (model.runner.limits.max_context, model.runner.limits.num_slots) == (77, 2)
    with open_artefact(folder, num_slots=1, max_context=9, threads=1) as model:
        assert (model.runner.limits.max_context, model.runner.limits.num_slots) == (9, 1)


def test_the_package_offers_open_artefact() -> None:
    import ds4export

    assert ds4export.open_artefact is open_artefact
    assert ds4export.Model is Model
    with pytest.raises(AttributeError, match="no attribute `nothing`"):
        _ = ds4export.nothing
