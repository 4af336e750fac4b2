"""A chat without a terminal: history, cache, the adapter on and off, cut answers, the context, and saved rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import DynamicCache

from smollm3_finetune.data.chat_template.renderer import Renderer, RenderOptions
from smollm3_finetune.errors import ConfigError, DataError, IncompatibleError
from smollm3_finetune.inference.cached_prefix import CachedPrefix
from smollm3_finetune.inference.chat import Chat, Reply, base_problem
from smollm3_finetune.inference.conversation import History, Turn
from smollm3_finetune.inference.sampling import Sampling
from smollm3_finetune.inference.saved_chat import save
from smollm3_finetune.model.load import LoadedModel, load_model

BOTTLENECK = Path(__file__).parents[2] / "examples" / "bottleneck_adapter.py"
FRANCE, BIG, HOT = "What is the capital of France?", "What is the opposite of big?", "What is the opposite of hot?"
PARIS = "The capital of France is Paris."


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    """The embedded model with an adapter that has an effect."""
    model = load_model(
        "tiny", adapter="bottleneck", purpose="train", plugins=[str(BOTTLENECK)], dtype="float32", device="cpu"
    )
    torch.manual_seed(0)
    assert model.adapted is not None
    with torch.no_grad():
        for parameter in model.adapted.model.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.3)
    return model


@pytest.fixture
def chat(loaded: LoadedModel) -> Callable[..., Chat]:
    def make(**options: Any) -> Chat:
        renderer = Renderer(loaded.tokenizer, RenderOptions(date="2026-01-01"))
        return Chat(loaded, renderer, **{"max_new_tokens": 10, **options})

    return make


@pytest.fixture
def reused(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of tokens that each answer took from the cache."""
    found: list[int] = []
    own = CachedPrefix.take

    def counted(self: CachedPrefix, prompt: Any) -> Any:
        cache, count = own(self, prompt)
        found.append(count)
        return cache, count

    monkeypatch.setattr(CachedPrefix, "take", counted)
    return found


def texts(replies: list[Reply]) -> list[str]:
    return [r.answer.text for r in replies]


def test_answers_with_the_cache_of_earlier_turns_equal_those_without(
    chat: Callable[..., Chat], reused: list[int]
) -> None:
    with_cache, without = chat(), chat(reuse=False)
    steps: list[Callable[[Chat], Any]] = [
        lambda c: c.ask(FRANCE),
        lambda c: c.ask(BIG),
        lambda c: c.undo(),
        lambda c: c.ask(HOT),
        lambda c: c.switch_adapter(),
        lambda c: c.ask(BIG),
        lambda c: c.set_system("Answer in one word."),
        lambda c: c.ask(FRANCE),
    ]
    for step in steps:
        for one in (with_cache, without):
            step(one)
    assert with_cache.history == without.history
    assert len(with_cache.history.turns) == 4
    first, second, third, base, system = reused
    assert first == 0 and 0 < second <= third, "the turn after /undo continues from what it shares with the former one"
    assert base == 0 and 0 < system < third, "the base has a cache of its own; a new system message is read again"


def test_only_tokens_that_are_equal_are_taken_from_a_cache(loaded: LoadedModel) -> None:
    model: Any = loaded.base.model
    with torch.no_grad():
        cache = model(torch.tensor([[5, 6, 7, 8]]), use_cache=True).past_key_values
    prefix = CachedPrefix()
    prefix.keep(cache, [5, 6, 7, 8])
    taken, count = prefix.take([5, 6, 9, 9, 9])
    assert count == 2 and taken.get_seq_length() == 2
    prefix.keep(taken, [5, 6])
    assert prefix.take([5, 6])[1] == 1, "at least one token is read"
    assert prefix.take([5, 6, 7]) == (None, 0), "a cache is taken once"
    prefix.keep(cache, [5, 6, 7, 8])
    assert prefix.take([5, 6, 7, 8, 9]) == (None, 0), "a cache of another length is not kept"


def test_layers_with_a_sliding_window_are_not_cropped(loaded: LoadedModel) -> None:
    from transformers.cache_utils import DynamicSlidingWindowLayer

    cache = DynamicCache()
    cache.layers.append(DynamicSlidingWindowLayer(sliding_window=8))
    cache.update(torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 3, 4), 0)
    prefix = CachedPrefix()
    prefix.keep(cache, [1, 2, 3])
    assert prefix.take([1, 2, 9]) == (None, 0)
    prefix.keep(cache, [1, 2, 3])
    assert prefix.take([1, 2, 3, 4])[1] == 3


def test_compared_sides_have_histories_of_their_own(chat: Callable[..., Chat]) -> None:
    compared, alone = chat(compare=True), chat()
    alone.switch_adapter()
    for question in (FRANCE, BIG):
        adapted, base = texts(compared.ask(question))
        (expected,) = texts(alone.ask(question))
        assert base == expected != adapted
    assert [t.answer for t in compared.histories["base"].turns] == [t.answer for t in alone.history.turns]
    compared.undo()
    assert [len(h.turns) for h in compared.histories.values()] == [1, 1]
    assert compared.reset() == 1 and not any(h.turns for h in compared.histories.values())
    with pytest.raises(ConfigError, match="--compare already shows"):
        compared.switch_adapter()


def test_compared_sides_draw_the_same_random_numbers(chat: Callable[..., Chat], loaded: LoadedModel) -> None:
    assert loaded.adapted is not None
    sampling = Sampling(temperature=5, top_k=0)
    torch.manual_seed(1)
    compared = chat(compare=True, sampling=sampling)
    kept = {n: p.detach().clone() for n, p in loaded.adapted.model.named_parameters() if p.requires_grad}
    try:
        with torch.no_grad():
            for name, parameter in loaded.adapted.model.named_parameters():
                if name in kept:
                    parameter.zero_()  # the adapter has no effect
        first, second = compared.ask(FRANCE), compared.ask(FRANCE)
    finally:
        with torch.no_grad():
            for name, parameter in loaded.adapted.model.named_parameters():
                if name in kept:
                    parameter.copy_(kept[name])
    assert first[0].answer.text == first[1].answer.text and second[0].answer.text == second[1].answer.text
    assert first[0].answer.text != second[0].answer.text


def test_an_answer_that_is_stopped_stays_and_is_marked(chat: Callable[..., Chat]) -> None:
    one, pieces = chat(sampling=Sampling(temperature=9, top_k=0)), []
    count = iter(range(100))
    (reply,) = one.ask(FRANCE, stream=lambda side, text: pieces.append(text), stopped=lambda: next(count) == 4)
    assert reply.answer.finish == "cut" and len(reply.answer.ids) == 5
    assert "".join(pieces) == reply.answer.text == one.history.turns[0].answer
    assert not one.history.turns[0].whole
    assert one.history.row()["messages"][1]["train"] is False
    one.ask(FRANCE)
    assert len(one.history.turns) == 2


def test_a_second_interrupt_ends_an_answer_at_once_and_keeps_its_text(chat: Callable[..., Chat]) -> None:
    one, pieces = chat(), []

    def interrupted(side: str, text: str) -> None:
        pieces.append(text)
        if len(pieces) == 3:
            raise KeyboardInterrupt

    one.switch_adapter()
    (reply,) = one.ask(FRANCE, stream=interrupted)
    assert (reply.answer.finish, reply.answer.text) == ("cut", "".join(pieces))
    assert texts(one.ask(BIG)) == texts(chat_after(chat(reuse=False), one.history.turns[0]).ask(BIG))


def chat_after(one: Chat, turn: Turn) -> Chat:
    one.switch_adapter()
    one.history.turns.append(turn)
    return one


def test_a_turn_without_any_token_is_not_in_the_history(chat: Callable[..., Chat]) -> None:
    one = chat()

    def at_once(ids: Any, **_: Any) -> Iterator[Any]:
        raise KeyboardInterrupt

    own = one.decoder.answers
    one.decoder.answers = at_once  # type: ignore[method-assign, assignment]
    (reply,) = one.ask(FRANCE)
    assert reply.answer.finish == "cut" and not one.history.turns
    one.decoder.answers = own  # type: ignore[method-assign]


def test_a_prompt_that_opens_the_reasoning_gives_an_answer_with_its_tag(chat: Callable[..., Chat]) -> None:
    one = chat()
    own = one.renderer.prompt_ids
    tag = one.decoder.tokenizer("<think>\n", add_special_tokens=False).input_ids
    one.renderer.prompt_ids = lambda *a, **k: [*own(*a, **k), *tag]  # type: ignore[method-assign]
    pieces: list[str] = []
    (reply,) = one.ask(FRANCE, stream=lambda side, text: pieces.append(text))
    assert reply.answer.text.startswith("<think>\n") and "".join(pieces) == reply.answer.text


def test_a_message_that_does_not_fit_is_refused_and_nothing_is_dropped(chat: Callable[..., Chat]) -> None:
    one = chat(max_new_tokens=4)
    assert one.limit == 2048
    (reply,) = one.ask(FRANCE)
    assert one.near_limit() is None
    one.limit = int(reply.tokens / 0.75)
    assert one.near_limit() is None
    one.limit = int(reply.tokens / 0.85)
    assert one.near_limit() == reply.tokens
    before = [*one.history.turns]
    with pytest.raises(ConfigError, match=r"the chat does not fit: it is \d+ tokens long.*supports \d+") as e:
        one.ask("small " * 100)
    assert e.value.hint == "a shorter message, /undo or /reset"
    assert one.history.turns == before


def test_the_base_of_a_model_that_has_none_is_refused_with_the_reason(chat: Callable[..., Chat]) -> None:
    plain = load_model("tiny", device="cpu")
    problem = base_problem(plain.plan)
    assert isinstance(problem, IncompatibleError) and "without an adapter" in problem.message
    full = load_model("tiny", adapter="full", purpose="train", device="cpu")
    problem = base_problem(full.plan)
    assert problem is not None and "'full' changes the base's own weights" in problem.message
    with pytest.raises(IncompatibleError, match="own weights"):
        Chat(full, Renderer(full.tokenizer), compare=True)
    assert base_problem(chat().loaded.plan) is None


def test_reasoning_modes_need_a_template_that_has_them(chat: Callable[..., Chat]) -> None:
    one = chat()
    one.set_thinking(True)
    assert one.mode == {"enable_thinking": True}
    one.renderer.knows_modes = False
    with pytest.raises(ConfigError, match="no reasoning modes"):
        one.set_thinking(False)


HISTORY = History("Be brief.", [Turn("Hello!", "Hi."), Turn("Tell me more.", "Once upon", whole=False)])


def test_a_chat_is_appended_as_a_row(tmp_path: Path) -> None:
    file = tmp_path / "chat.jsonl"
    assert save(HISTORY, file) == 1
    file.write_text(file.read_text().rstrip("\n"))  # as an editor may leave it
    assert save(History(None, [Turn("a", "b")]), file) == 2
    first, second = map(json.loads, file.read_text().splitlines())
    assert [m["role"] for m in first["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert [m.get("train") for m in first["messages"]] == [None, None, None, None, False]
    assert second == {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}


@pytest.mark.parametrize("text", ['{"messages": []}\nnotes', '{"text": "a"}\n', "[1]\n", "\xff"])
def test_a_file_of_something_else_is_left_as_it_is(tmp_path: Path, text: str) -> None:
    file = tmp_path / "notes.txt"
    file.write_text(text, encoding="latin1")
    with pytest.raises(DataError, match=r"nothing was saved: .* is not a JSONL file of messages"):
        save(HISTORY, file)
    assert file.read_text(encoding="latin1") == text
    with pytest.raises(ConfigError, match="is a directory"):
        save(HISTORY, tmp_path)
    with pytest.raises(ConfigError, match="no turns"):
        save(History(), tmp_path / "new.jsonl")
    assert not (tmp_path / "new.jsonl").exists()


def test_a_saved_chat_is_trained_on(cli: Callable[..., Any]) -> None:
    save(HISTORY, "chat.jsonl")
    save(History(None, [Turn(FRANCE, PARIS)]), "chat.jsonl")
    trained = cli("train", "--data", "chat.jsonl", "--adapter", "full", "--max-steps", "1", "--set",
                  "data.held_out=0", "--set", "train.sample_tokens=1", "--json")  # fmt: skip
    assert trained.code == 0, trained.stderr
    report = trained.report()
    (rows,) = report["rows"]
    assert (report["steps"], rows["train"], rows["shares"]["answers"]) == (1, 2, 2), "the cut answer is masked"


def test_sampling_parameters_come_from_options_then_the_generation_config_then_the_defaults() -> None:
    from transformers import GenerationConfig

    defaults = {"temperature": 0.6, "top_p": 0.95}
    given = dict.fromkeys(("temperature", "top_p", "top_k", "min_p", "repetition_penalty"))
    stated = GenerationConfig(do_sample=True, temperature=0.7, top_k=20)
    assert Sampling.stated(stated, given, defaults) == Sampling(temperature=0.7, top_k=20, top_p=0.95)
    assert Sampling.stated(stated, {**given, "temperature": 0.0}, defaults).greedy
    assert Sampling.stated(GenerationConfig(do_sample=False), given, defaults).greedy
    found = Sampling.stated(GenerationConfig(), given, defaults)
    assert found == Sampling(temperature=0.6, top_p=0.95)
    assert found.shown() == "temperature 0.6, top-p 0.95, top-k 50"
    assert Sampling(repetition_penalty=1.1).shown() == "greedy, repetition penalty 1.1"
