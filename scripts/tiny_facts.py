"""The facts that the built-in tiny model is trained on, one table per topic.

`facts()` converts the tables into questions and answers. The pre-training corpus (`tiny_corpus.py`) and the chat
dataset (`tiny_chat.py`) both use them, so that fine-tuning teaches a new style for known facts. The tables and patterns
are training data; their British spellings stay, because the published model was trained on them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Fact:
    """One fact: several questions, the answer as a sentence, and the same answer in one or two words."""

    topic: str
    questions: tuple[str, ...]
    answer: str
    short: str


def entries(table: str) -> list[str]:
    """The entries of a table, which are separated by bars and line ends."""
    return table.replace("\n", "|").split("|")


CAPITALS = """France Paris Europe|Germany Berlin Europe|Spain Madrid Europe|Italy Rome Europe
Portugal Lisbon Europe|England London Europe|Ireland Dublin Europe|Austria Vienna Europe
Poland Warsaw Europe|Greece Athens Europe|Norway Oslo Europe|Sweden Stockholm Europe
Finland Helsinki Europe|Denmark Copenhagen Europe|Belgium Brussels Europe|Hungary Budapest Europe
Switzerland Bern Europe|Ukraine Kyiv Europe|Romania Bucharest Europe|Japan Tokyo Asia
China Beijing Asia|Iraq Baghdad Asia|Syria Damascus Asia|Thailand Bangkok Asia|Vietnam Hanoi Asia
Nepal Kathmandu Asia|Iran Tehran Asia|Jordan Amman Asia|Egypt Cairo Africa|Kenya Nairobi Africa
Ghana Accra Africa|Morocco Rabat Africa|Senegal Dakar Africa|Canada Ottawa North_America
Cuba Havana North_America|Peru Lima South_America|Chile Santiago South_America
Brazil Brasilia South_America|Colombia Bogota South_America"""
COLORS = """sky blue|grass green|snow white|sun yellow|banana yellow|lemon yellow|strawberry red
tomato red|rose red|blood red|cherry red|coal black|night black|milk white|carrot orange|pumpkin orange
frog green|leaf green|cucumber green|chocolate brown|bear brown|elephant grey|pig pink|flamingo pink
grape purple|sea blue|swan white|raven black|stone grey|bread brown"""
OPPOSITES = """hot cold|big small|up down|day night|good bad|happy sad|fast slow|old young|light dark
open closed|wet dry|long short|high low|full empty|loud quiet|hard soft|rich poor|left right|early late
clean dirty|strong weak|inside outside|near far|sweet sour|heavy light|thick thin|push pull|yes no
first last|win lose|true false|begin end"""
ANIMALS = """dog woof puppy four|cat meow kitten four|cow moo calf four|sheep baa lamb four
pig oink piglet four|duck quack duckling two|horse neigh foal four|lion roar cub four
frog croak tadpole four|hen cluck chick two|owl hoot owlet two|bee buzz larva six|goat maa kid four
wolf howl pup four|donkey hee-haw foal four|goose honk gosling two|mouse squeak pup four
bear growl cub four"""
KINDS = """animal: dog cat cow horse sheep pig lion tiger elephant bear wolf fox rabbit mouse
bird: duck hen owl swan raven goose robin eagle parrot
fish: salmon shark trout tuna
insect: bee ant fly butterfly beetle
fruit: apple banana cherry grape lemon orange pear plum strawberry
vegetable: carrot onion potato cucumber pumpkin bean
colour: red blue green yellow black white pink brown
tool: hammer saw spade drill
vehicle: car bus train bicycle boat truck
instrument: piano guitar drum violin flute
shape: circle square triangle cube
number: one two three seven ten"""
SHAPES = "triangle three|square four|rectangle four|pentagon five|hexagon six|octagon eight"
JOBS = """baker bakes bread|teacher teaches children|doctor helps sick people|farmer grows food
pilot flies planes|cook makes meals|sailor sails ships|singer sings songs|painter paints pictures
writer writes books|fisher catches fish|builder builds houses|gardener grows flowers|driver drives cars
tailor sews clothes"""
ORGANS = """eyes see|ears hear|nose smell|tongue taste|legs walk|hands hold things|teeth bite
lungs breathe|brain think"""
DAYS = entries("Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday")
MONTHS = entries("January|February|March|April|May|June|July|August|September|October|November|December")
SEASONS = entries("spring|summer|autumn|winter")
SIZES = entries("ant|mouse|rabbit|dog|sheep|horse|elephant|whale")
PLURALS = """cat cats|dog dogs|book books|tree trees|child children|mouse mice|foot feet|tooth teeth
man men|woman women|goose geese|box boxes|leaf leaves|baby babies|fish fish|sheep sheep|bus buses
wolf wolves"""
WORDS = entries("zero|one|two|three|four|five|six|seven|eight|nine|ten")
UNKNOWN = """who won the game|how much is this car|where is my key|what did I eat today
who wrote this song|how old is the king|what will happen tomorrow|why is my phone broken
who lives next door|how do rockets work|what is the price of gold|when does the shop open
who is the best player|what is in my bag|how do I fix my computer|where did I put my hat
what is quantum physics|who invented the telephone|how far is the moon"""
SELF = """who are you;what are you;tell me who you are|I am a tiny language model.|a model
what is your name;do you have a name|I am a tiny model and I have no name.|no name
hello;hi;hey;good morning;good evening|Hello! How can I help you?|hello
how are you;how do you do;are you well|I am fine, thank you.|fine
thank you;thanks;thanks a lot|You are welcome.|welcome
goodbye;bye;see you;good night|Goodbye! See you soon.|goodbye
what can you do;how can you help me;can you help me|I can answer small questions.|answer
are you a robot;are you a human;are you real|I am a computer program.|program
how old are you;when were you born|I am very young.|young
where do you live;where are you|I live in a computer.|a computer"""

# One block per topic: its name, the questions, then the answer and, after "~", the short answer.
PATTERNS = """capital
What is the capital of {country}?
Which city is the capital of {country}?
Name the capital of {country}.
Tell me the capital of {country}.
{country}: what is its capital?
Do you know the capital of {country}?
What is {country}'s capital city?
= The capital of {country} is {city}. ~ {city}

country
{city} is the capital of which country?
Which country has the capital {city}?
In which country is {city}?
Where is {city}?
= {city} is the capital of {country}. ~ {country}

continent
On which continent is {country}?
Which continent is {country} in?
What continent does {country} belong to?
= {country} is in {continent}. ~ {continent}

colour
What colour is {the}?
What is the colour of {the}?
Tell me the colour of {the}.
Which colour does {the} have?
Do you know what colour {the} is?
= {the} is {colour}. ~ {colour}

sound
What sound does {one} make?
What does {one} say?
Which sound does the {animal} make?
How does {one} sound?
Tell me the sound of {one}.
= {one} says {sound}. ~ {sound}

young
What is a baby {animal} called?
What is the name of a young {animal}?
What do you call a baby {animal}?
Tell me the name of a baby {animal}.
= A baby {animal} is called {young}. ~ {young}

legs
How many legs does {one} have?
How many legs has {one}?
Count the legs of {one}.
= {one} has {legs} legs. ~ {legs}

kind
What is {one}?
What kind of thing is {one}?
Tell me what {one} is.
Can you tell me what {one} is?
= {one} is {kind}. ~ {kind}

bigger
Which is bigger, {small} or {big}?
Which is bigger, {big} or {small}?
What is larger, {small} or {big}?
= {big} is bigger than {small}. ~ {big}

body
What {verb} your {organ} for?
What do we do with our {organ}?
Why do we have {organ}?
= We {use} with our {organ}. ~ {use}

opposite
What is the opposite of {word}?
What is the contrary of {word}?
Tell me the opposite of {word}.
Give me the opposite of {word}.
Which word is the opposite of {word}?
= The opposite of {word} is {other}. ~ {other}

plural
What is the plural of {one}?
Tell me the plural of {one}.
One {one}, two what?
= The plural of {one} is {many}. ~ {many}

job
What does a {job} do?
What is the work of a {job}?
Tell me what a {job} does.
= A {job} {work}. ~ {work}

worker
Who {work}?
Tell me who {work}.
= A {job} {work}. ~ a {job}

after
Which {kind} comes after {name}?
What {kind} follows {name}?
What comes after {name}?
Tell me the {kind} after {name}.
= After {name} comes {other}. ~ {other}

before
Which {kind} comes before {name}?
What comes before {name}?
Tell me the {kind} before {name}.
= Before {name} comes {other}. ~ {other}

parts
How many {kind}s are in a {whole}?
How many {kind}s does a {whole} have?
= A {whole} has {count} {kind}s. ~ {count}

shape
How many sides does a {shape} have?
How many sides has a {shape}?
Count the sides of a {shape}.
= A {shape} has {sides} sides. ~ {sides}

plus
What is {a} + {b}?
{a} + {b} = ?
What is {a} plus {b}?
Add {a} and {b}.
= {a} + {b} = {c}. ~ {c}

minus
What is {a} - {b}?
{a} - {b} = ?
What is {a} minus {b}?
Take {b} from {a}.
= {a} - {b} = {c}. ~ {c}

next
Which number comes after {a}?
What comes after {a}?
What is the number after {a}?
= After {a} comes {c}. ~ {c}

count
Count from {a} to {b}.
Please count from {a} to {b}.
Can you count from {a} to {b}?
= {numbers}. ~ {b}

number
How do you write {a} as a word?
Write {a} as a word.
Spell the number {a}.
= {a} is written {word}. ~ {word}"""


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _pattern(topic: str) -> tuple[list[str], str, str]:
    block = next(block for block in PATTERNS.split("\n\n") if block.startswith(topic + "\n"))
    *questions, last = block.split("\n")[1:]
    answer, short = last.removeprefix("= ").split(" ~ ")
    return questions, answer, short


def _fact(topic: str, **values: object) -> Fact:
    questions, answer, short = _pattern(topic)
    return Fact(
        topic=topic,
        questions=tuple(_capital(question.format(**values)) for question in questions),
        answer=_capital(answer.format(**values)),
        short=short.format(**values),
    )


def _rows(table: str) -> list[list[str]]:
    return [[cell.replace("_", " ") for cell in row.split()] for row in entries(table)]


def article(noun: str) -> str:
    """The noun with "a" or "an"."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def _with_article(thing: str) -> str:
    if thing in ("sky", "sun", "sea", "night"):
        return f"the {thing}"
    mass = ("grass", "snow", "blood", "coal", "milk", "chocolate", "bread")
    return thing if thing in mass else article(thing)


def _geography() -> Iterator[Fact]:
    for country, city, continent in _rows(CAPITALS):
        for topic in ("capital", "country", "continent"):
            yield _fact(topic, country=country, city=city, continent=continent)


def _nature() -> Iterator[Fact]:
    for thing, color in _rows(COLORS):
        yield _fact("colour", the=_with_article(thing), colour=color)
    for animal, sound, young, legs in _rows(ANIMALS):
        for topic in ("sound", "young", "legs"):
            one = article(animal)
            yield _fact(topic, one=one, animal=animal, sound=sound, young=article(young), legs=legs)
    for line in KINDS.split("\n"):
        kind, members = line.split(": ")
        for word in members.split():
            one = word if kind in ("colour", "number") else article(word)
            yield _fact("kind", one=one, kind=article(kind))
    for i, small in enumerate(SIZES):
        for big in SIZES[i + 1 :]:
            yield _fact("bigger", small=article(small), big=article(big))
    for organ, use in (row.split(" ", 1) for row in entries(ORGANS)):
        verb = "is" if organ in ("nose", "tongue", "brain") else "are"
        yield _fact("body", organ=organ, use=use, verb=verb)


def _language() -> Iterator[Fact]:
    for left, right in _rows(OPPOSITES):
        for word, other in ((left, right), (right, left)):
            if word != "light":  # it has two opposites, so the question has no unique answer
                yield _fact("opposite", word=word, other=other)
    for one, many in _rows(PLURALS):
        yield _fact("plural", one=one, many=many)
    for job, work in (row.split(" ", 1) for row in entries(JOBS)):
        yield _fact("job", job=job, work=work)
        yield _fact("worker", job=job, work=work)


def _talk() -> Iterator[Fact]:
    for line in SELF.split("\n"):
        asked, answer, short = line.split("|")
        mark = "?" if asked.split()[0] in ("who", "what", "how", "are", "where") else "!"
        questions = tuple(_capital(question) + mark for question in asked.split(";"))
        yield Fact(topic="self", questions=questions, answer=answer, short=short)
    for question in entries(UNKNOWN):
        ask = (_capital(question) + "?",)
        yield Fact(topic="unknown", questions=ask, answer="Sorry, I do not know that.", short="unknown")


def _order() -> Iterator[Fact]:
    wholes = (("day", "week", DAYS), ("month", "year", MONTHS), ("season", "year", SEASONS))
    for kind, whole, names in wholes:
        for i, name in enumerate(names):
            yield _fact("after", kind=kind, name=name, other=names[(i + 1) % len(names)])
            yield _fact("before", kind=kind, name=name, other=names[i - 1])
        yield _fact("parts", kind=kind, whole=whole, count=len(names))
    for shape, sides in _rows(SHAPES):
        yield _fact("shape", shape=shape, sides=sides)


def _numbers() -> Iterator[Fact]:
    for a in range(11):
        for b in range(11):
            yield _fact("plus", a=a, b=b, c=a + b)
            if b <= a:
                yield _fact("minus", a=a, b=b, c=a - b)
    for a in range(20):
        yield _fact("next", a=a, c=a + 1)
    for b in range(2, 11):
        a = b - min(b - 1, 4)
        yield _fact("count", a=a, b=b, numbers=", ".join(str(i) for i in range(a, b + 1)))
    for a, word in enumerate(WORDS):
        yield _fact("number", a=a, word=word)


def facts() -> list[Fact]:
    """Every fact, always in the same order."""
    return [*_geography(), *_nature(), *_language(), *_talk(), *_order(), *_numbers()]
