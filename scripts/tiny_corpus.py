"""Deterministic pre-training corpus of the built-in tiny model: chats, plain sentences and short stories.

All text is generated from the tables in `tiny_facts.py` and the templates below; nothing is copied.
`python scripts/tiny_corpus.py --count 5` prints some documents.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator

from tiny_facts import ANIMALS, Fact, article, entries, facts

Document = str | list[dict[str, str]]
"""Plain text, or the messages of a chat."""

# Relative frequency of each topic; within a topic, all facts are equally likely. The training budget is small, so most
# of it goes to the topics of likely first questions.
WEIGHTS = {
    "capital": 30, "country": 2, "continent": 3, "colour": 18, "sound": 8, "young": 5, "legs": 2, "kind": 12,
    "bigger": 2, "body": 1, "opposite": 22, "plural": 2, "job": 3, "worker": 2, "self": 10, "unknown": 3,
    "after": 8, "before": 3, "parts": 1, "shape": 1, "plus": 6, "minus": 2, "next": 1, "count": 1,
    "number": 1,
}  # fmt: skip
GIRLS = entries("Anna|Clara|Emma|Grace|Ida|Kate|Mia|Olga|Rosa|Tina")
NAMES = [*GIRLS, *entries("Ben|David|Felix|Henry|Jack|Leo|Nick|Paul|Sam|Tom")]
PLACES = entries("park|forest|garden|school|lake|market|beach|farm")
TOYS = entries("red ball|blue kite|green boat|yellow hat|little drum|white box|big book|old bell")
ENDINGS = entries("happy|very happy|tired but happy|glad")
HELPFUL = (
    "You are a helpful assistant.",
    "You are a friendly helper.",
    "Be kind and helpful.",
    "Answer clearly.",
)
ONE_WORD = ("Answer with one word.", "Give only the short answer.", "Reply in one word.")


def story(rng: random.Random, animal: str) -> str:
    """Four or five consistent sentences about a child and an animal."""
    name, toy, place = rng.choice(NAMES), rng.choice(TOYS), rng.choice(PLACES)
    he, his = ("She", "her") if name in GIRLS else ("He", "his")
    child = "girl" if name in GIRLS else "boy"
    middle = rng.choice(
        (
            f"The {animal} takes the {toy} and runs away. {name} runs after the {animal} and laughs.",
            f"The {toy} falls into the water. The {animal} brings it back to {name}.",
            f"It begins to rain. {name} and the {animal} sit under a big tree.",
            f"{name} loses the {toy}. The {animal} finds it behind a tree.",
        )
    )
    return (
        f"{name} is a little {child}. {he} has a {toy} and a small {animal}. "
        f"One day {name} goes to the {place} with {his} {animal}. {middle} "
        f"In the evening {name} goes home and is {rng.choice(ENDINGS)}."
    )


def vary(rng: random.Random, question: str) -> str:
    """The question unchanged, carelessly typed, or with a polite opening."""
    draw = rng.random()
    if draw < 0.70:
        return question
    if draw < 0.80:
        return question.lower().rstrip("?.!") + rng.choice(("", "?"))
    if draw < 0.85:
        return question.rstrip("?.!")
    polite = ("Hello! ", "Hi! ", "Please tell me. ", "I have a question. ", "Quick question: ")
    return rng.choice(polite) + question


class Corpus:
    """An endless stream of documents; the same seed gives the same stream."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.topics: dict[str, list[Fact]] = {}
        for fact in facts():
            self.topics.setdefault(fact.topic, []).append(fact)
        self.animals = [row.split()[0] for row in entries(ANIMALS)]

    def fact(self) -> Fact:
        """One fact, whose topic is drawn with the probabilities in WEIGHTS."""
        topic = self.rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        return self.rng.choice(self.topics[topic])

    def exchange(self, short: bool) -> list[dict[str, str]]:
        """A question and its answer; with `short`, the answer has one or two words."""
        fact = self.fact()
        question = vary(self.rng, self.rng.choice(fact.questions))
        answer = f"{fact.short[0].upper()}{fact.short[1:]}." if short else fact.answer
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    def named(self) -> list[dict[str, str]]:
        """Two turns; the question in the second can only be answered from the first."""
        name = self.rng.choice(NAMES)
        first = self.rng.choice((f"My name is {name}.", f"I am {name}.", f"Hello, I am {name}."))
        second = self.rng.choice(("What is my name?", "Do you know my name?", "Who am I?"))
        return [
            {"role": "user", "content": first},
            {"role": "assistant", "content": f"Hello, {name}! Nice to meet you."},
            {"role": "user", "content": second},
            {"role": "assistant", "content": f"Your name is {name}."},
        ]

    def chat(self) -> list[dict[str, str]]:
        """A story, an introduction, or one to three questions, some with a system message that the answers follow."""
        rng, draw = self.rng, self.rng.random()
        if draw < 0.04:
            animal = rng.choice(self.animals)
            asks = (
                "Tell me a story about a {}.",
                "Write a story about a {}.",
                "Tell a short story with a {}.",
            )
            return [
                {"role": "user", "content": rng.choice(asks).replace("a {}", article(animal))},
                {"role": "assistant", "content": story(rng, animal)},
            ]
        if draw < 0.08:
            return self.named()
        short = rng.random() < 0.08
        messages: list[dict[str, str]] = []
        if short:
            messages.append({"role": "system", "content": rng.choice(ONE_WORD)})
        elif rng.random() < 0.15:
            messages.append({"role": "system", "content": rng.choice(HELPFUL)})
        for _ in range(rng.choices((1, 2, 3), (35, 25, 40))[0]):
            messages += self.exchange(short)
        return messages

    def plain(self) -> str:
        """A story or a few facts as running text."""
        if self.rng.random() < 0.15:
            return story(self.rng, self.rng.choice(self.animals))
        return " ".join(self.fact().answer for _ in range(self.rng.randint(2, 5)))

    def __iter__(self) -> Iterator[Document]:
        while True:
            yield self.plain() if self.rng.random() < 0.08 else self.chat()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5, help="documents to print")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    for _, document in zip(range(args.count), Corpus(args.seed), strict=False):
        print(document if isinstance(document, str) else json.dumps(document))


if __name__ == "__main__":
    main()
