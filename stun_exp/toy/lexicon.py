"""The words of the toy world: pools of values, attributes with their sentences, subjects of the questions."""

from dataclasses import dataclass

POOLS = {
    "job": "baker smith tailor miller sailor potter weaver hunter farmer singer writer doctor judge guard "
    "cook clerk painter glazier cooper mason",
    "food": "bread cheese rice soup plums pears figs beans corn honey fish ham nuts eggs cake jam peas dates "
    "milk salad",
    "pet": "cat dog goat horse mouse parrot rabbit hen duck fox owl crow snake turtle frog lamb otter hawk",
    "instrument": "flute drum harp fiddle horn lute organ piano bell pipe gong viola cello whistle",
    "colour": "red blue green yellow black white brown purple orange pink grey gold silver violet",
    "crop": "wheat barley oats hops flax tea cotton onions grapes olives melons apples cherries cabbage",
    "stone": "granite marble slate chalk flint basalt jade quartz opal amber coal agate",
    "month": "January February March April May June July August September October November December",
    "weather": "rain snow fog wind sun hail frost storms heat mist",
    "material": "iron copper tin wood glass clay leather wool silk paper bone ivory wax stone brass cork",
    "shape": "round square flat long short thin thick hollow curved pointed",
    "tool": "hammer needle knife saw brush chisel file awl spoon plane drill tongs",
    # Closed sets of four, in the order in which lettered questions list them.
    "temper": "calm merry gloomy shy",
    "rank": "peasant burgher knight noble",
    "season": "spring summer autumn winter",
    "drink": "water ale cider wine",
    "direction": "north east south west",
    "climate": "hot warm mild cold",
    "population": "hamlet village town city",
    "size": "tiny small large huge",
    "age": "new recent old ancient",
    "price": "free cheap fair dear",
    "countable": "shells coins stamps cards beads rings pens books nails ropes cups hats toys keys stars bricks",
    "verb": "cut dry boil heat wash press twist fold grind soak bend paint scrape polish mix stretch roll stir",
    "object": "reed bark root leaf seed thread cloth sand oil salt ash resin moss straw fur horn skin shell "
    "wire paste dough dye pulp fibre board frame",
}


def pool(name: str) -> tuple[str, ...]:
    """The words of one pool."""
    return tuple(POOLS[name].split())


@dataclass(frozen=True)
class Attribute:
    """One relation of an entity to a value: the words that state it and, with `{e}` for the entity, ask."""

    noun: str
    verb: str
    question: str
    values: str  # a pool, or the kind of entity whose names are the values


ATTRIBUTES = {
    "person": (
        Attribute("home", "lives in", "Where does {e} live?", "place"),
        Attribute("job", "works as a", "What work does {e} do?", "job"),
        Attribute("pet", "keeps a", "What animal does {e} keep?", "pet"),
        Attribute("food", "likes to eat", "What does {e} like to eat?", "food"),
        Attribute("instrument", "plays the", "What does {e} play?", "instrument"),
        Attribute("colour", "always wears", "What colour does {e} wear?", "colour"),
        Attribute("temper", "is always", "How does {e} feel?", "temper"),
        Attribute("rank", "was born a", "Which rank has {e}?", "rank"),
        Attribute("season", "waits for", "When is {e} happy?", "season"),
        Attribute("drink", "drinks only", "What does {e} drink?", "drink"),
    ),
    "place": (
        Attribute("mayor", "is ruled by", "Who rules {e}?", "person"),
        Attribute("crop", "grows", "What grows in {e}?", "crop"),
        Attribute("stone", "is built of", "What is {e} built of?", "stone"),
        Attribute("feast", "has its feast in", "When is the feast of {e}?", "month"),
        Attribute("weather", "is known for", "What is {e} known for?", "weather"),
        Attribute("direction", "lies in the", "Where does {e} lie?", "direction"),
        Attribute("climate", "is always", "How warm is {e}?", "climate"),
        Attribute("population", "has become a", "How many people live in {e}?", "population"),
    ),
    "thing": (
        Attribute("material", "is made of", "What is a {e} made of?", "material"),
        Attribute("shape", "looks", "How does a {e} look?", "shape"),
        Attribute("origin", "was invented in", "Where was the {e} invented?", "place"),
        Attribute("tool", "is mended with a", "What mends a {e}?", "tool"),
        Attribute("owner", "is owned by", "Who owns a {e}?", "person"),
        Attribute("size", "looks so", "How big is a {e}?", "size"),
        Attribute("age", "counts as", "How old is a {e}?", "age"),
        Attribute("price", "is sold as", "What does a {e} cost?", "price"),
    ),
}

# What each subject of the lettered questions asks: a kind of entity and some of its attributes, all closed sets.
SUBJECTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "biography": ("person", ("temper", "rank")),
    "customs": ("person", ("season", "drink")),
    "geography": ("place", ("direction", "climate", "population")),
    "inventions": ("thing", ("size", "age", "price")),
}
