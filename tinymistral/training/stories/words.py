"""The words that a story's facts are drawn from, and the forms they take."""

GIRLS = tuple(
    "Mia Lily Nora Ruby Clara Tilda Ivy Hazel Poppy Stella Wendy Freya Greta Juno Bella Dora "
    "Fern Olive Penny Rosie Sofia Uma Vera Yara Zoë Anna Emma Kitty Luna Maya".split()
)
BOYS = tuple(
    "Tom Ben Oscar Felix Hugo Jack Leo Max Ned Otto Pip Ralph Sam Theo Victor Walter Arlo Bruno "
    "Casper Dylan Finn George Harry Ivan José Kip Louis Milo Noah Rufus".split()
)
# Made-up names: a start, perhaps a middle, and an end that tells a girl from a boy.
STARTS = tuple(
    "Bal Bel Bri Cal Cor Dar Del Dru Fal Fen Gar Gil Hal Jor Kel Kor Lam Lor Mar Mel Mor Nal Nim "
    "Or Pel Quin Ral Ro Sar Sel Tal Tor Tul Ul Val Vel Wil Yel Zal Zim".split()
)
MIDDLES = ("", "", "a", "be", "di", "do", "li", "mi", "ni", "ro", "ti", "vi")
GIRL_ENDS = tuple("bella dina la lia mara na nessa rina sha ta tina via".split())
BOY_ENDS = tuple("bert bo dan din do fin lo mo mund rick ton vin".split())

ANIMALS = tuple(
    "badger bear beaver dragon elephant fox goat hedgehog kangaroo kitten koala lamb mole monkey "
    "mouse otter panda penguin pony puppy rabbit raccoon squirrel".split()
)

# Small things to give, to find or to promise.
GIFTS = tuple(
    "bell button feather pebble shell compass ring candle spoon key marble cushion picture "
    "mirror thimble necklace".split()
)

# Each slot that keeps one word for the whole story.
WORDS: dict[str, tuple[str, ...]] = {
    "colour": tuple(
        "red blue green yellow purple orange pink white black brown silver golden".split()
    ),
    "number": tuple("three four five six seven eight nine ten eleven twelve".split()),
    "day": tuple("Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()),
    "weather": tuple("rainy sunny windy snowy foggy stormy frosty cloudy".split()),
    "helper": tuple(
        "owl heron tortoise crow goose stork toad swan magpie donkey pelican baker farmer miller "
        "sailor gardener shepherd tailor teacher painter".split()
    ),
    "toy": tuple(
        "kite ball boat drum doll whistle puppet lantern balloon trumpet yo-yo umbrella "
        "wagon flute".split()
    ),
    "garment": tuple("hat scarf coat cap mitten ribbon slipper jumper sock apron cloak".split()),
    "spot": tuple(
        "barrel basket bucket boot cart chest cupboard haystack nest pot sack shed teapot trunk "
        "drawer jug".split()
    ),
    "gift": GIFTS,
    "promise": GIFTS,
    "food": tuple(
        "soup honey jam porridge bread cheese pudding toffee gingerbread custard salad popcorn "
        "rice chocolate".split()
    ),
    "fruit": tuple(
        "apple pear plum cherry peach lemon strawberry melon fig walnut chestnut apricot".split()
    ),
    "flower": tuple(
        "daisy tulip poppy bluebell lily sunflower buttercup snowdrop pansy primrose".split()
    ),
    "home": tuple(
        "cottage windmill barn cabin castle burrow tent tower caravan inn hut bakery palace "
        "treehouse farmhouse".split()
    ),
    "land": tuple(
        "forest valley village harbour desert swamp city jungle moor orchard park mountains".split()
    ),
    "song": tuple(
        "stars ducks ships clouds trains kings bees snowflakes whales pancakes goblins "
        "parrots".split()
    ),
    "password": tuple(
        "pickle thunder marmalade dumpling pumpkin lollipop noodle rhubarb biscuit turnip "
        "cabbage velvet".split()
    ),
    "boat": tuple(
        "Swallow Comet Mermaid Pearl Thistle Whale Juniper Falcon Duchess Sunrise".split()
    ),
    "where": (
        "at the edge of a wood",
        "beside a quiet river",
        "by the sea",
        "on top of a hill",
        "in a quiet valley",
        "near a busy village",
        "on a small island",
        "at the end of a long lane",
        "beside a deep lake",
        "under a tall mountain",
        "next to an old bridge",
        "behind an apple orchard",
    ),
}

PLURALS = {
    "mouse": "mice",
    "cherry": "cherries",
    "daisy": "daisies",
    "lily": "lilies",
    "pansy": "pansies",
    "poppy": "poppies",
    "strawberry": "strawberries",
    "peach": "peaches",
    "goose": "geese",
}

PRONOUNS = {
    "girl": {"he": "she", "him": "her", "his": "her", "himself": "herself"},
    "boy": {"he": "he", "him": "him", "his": "his", "himself": "himself"},
}

# Words of other languages and words with accents, for the signs that a hero passes.
FOREIGN = tuple(
    "café|naïve|crème brûlée|señor|mañana|garçon|fjord|smörgåsbord|jalapeño|über|déjà vu|"
    "piñata|château|straße|čaj|łódź|привет|мир|καλημέρα|γεια|こんにちは|你好|안녕|नमस्ते|שלום|سلام".split(
        "|"
    )
)

# Emoji and symbols by ranges of code points, wide enough to train every byte token that UTF-8 uses.
SYMBOLS = tuple(
    chr(point)
    for first, last in (
        (0x1F300, 0x1F5FF),
        (0x1F600, 0x1F64F),
        (0x1F680, 0x1F6C5),
        (0x1F90C, 0x1F9FF),
        (0x2600, 0x27BF),
        (0x2190, 0x21FF),
    )
    for point in range(first, last + 1)
)


def article(word: str) -> str:
    """Return the word with its indefinite article."""
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def plural(word: str) -> str:
    """Return the plural of a noun of the lists above."""
    return PLURALS.get(word, f"{word}s")


# Letters of many scripts, for the same reason.
LETTERS = tuple(
    chr(point)
    for first, last in (
        (0x00C0, 0x00D6),
        (0x0100, 0x017F),
        (0x0391, 0x03A1),
        (0x0410, 0x044F),
        (0x0531, 0x0556),
        (0x05D0, 0x05EA),
        (0x0621, 0x064A),
        (0x0905, 0x0939),
        (0x0E01, 0x0E30),
        (0x10D0, 0x10F0),
        (0x3041, 0x30FA),
        (0x4E00, 0x9FA5),
        (0xAC00, 0xD7A3),
    )
    for point in range(first, last + 1)
)
