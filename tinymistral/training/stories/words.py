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
GIFTS = (
    "bell button feather pebble shell compass ring candle spoon key marble cushion "
    "picture mirror thimble necklace"
)

# Each slot that keeps one word for the whole story.
WORDS: dict[str, tuple[str, ...]] = {
    slot: tuple(words.split())
    for slot, words in {
        "colour": "red blue green yellow purple orange pink white black brown silver golden",
        "number": "three four five six seven eight nine ten eleven twelve",
        "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
        "weather": "rainy sunny windy snowy foggy stormy frosty cloudy",
        "helper": "owl heron tortoise crow goose stork toad swan magpie donkey pelican baker "
        "farmer miller sailor gardener shepherd tailor teacher painter",
        "toy": "kite ball boat drum doll whistle puppet lantern balloon trumpet yo-yo umbrella "
        "wagon flute",
        "garment": "hat scarf coat cap mitten ribbon slipper jumper sock apron cloak",
        "spot": "barrel basket bucket boot cart chest cupboard haystack nest pot sack shed "
        "teapot trunk drawer jug",
        "gift": GIFTS,
        "promise": GIFTS,
        "food": "soup honey jam porridge bread cheese pudding toffee gingerbread custard salad "
        "popcorn rice chocolate",
        "fruit": "apple pear plum cherry peach lemon strawberry melon fig walnut chestnut apricot",
        "flower": "daisy tulip poppy bluebell lily sunflower buttercup snowdrop pansy primrose",
        "home": "cottage windmill barn cabin castle burrow tent tower caravan inn hut bakery "
        "palace treehouse farmhouse",
        "land": "forest valley village harbour desert swamp city jungle moor orchard park "
        "mountains",
        "song": "stars ducks ships clouds trains kings bees snowflakes whales pancakes goblins "
        "parrots",
        "password": "pickle thunder marmalade dumpling pumpkin lollipop noodle rhubarb biscuit "
        "turnip cabbage velvet",
        "boat": "Swallow Comet Mermaid Pearl Thistle Whale Juniper Falcon Duchess Sunrise",
    }.items()
}
WORDS["where"] = tuple(
    (
        "at the edge of a wood|beside a quiet river|by the sea|on top of a hill|"
        "in a quiet valley|near a busy village|on a small island|at the end of a long lane|"
        "beside a deep lake|under a tall mountain|next to an old bridge|behind an apple orchard"
    ).split("|")
)

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
    (
        "café|naïve|crème brûlée|señor|mañana|garçon|fjord|smörgåsbord|jalapeño|über|"
        "déjà vu|piñata|château|straße|čaj|łódź|"
        "привет|мир|καλημέρα|γεια|こんにちは|你好|안녕|नमस्ते|שלום|سلام"
    ).split("|")
)


def article(word: str) -> str:
    """Return the word with its indefinite article."""
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def plural(word: str) -> str:
    """Return the plural of a noun of the lists above."""
    return PLURALS.get(word, f"{word}s")


def characters(ranges: str) -> tuple[str, ...]:
    """Return the characters of ranges of code points, such as "2190-21FF" for the arrows."""
    bounds = [[int(point, 16) for point in one.split("-")] for one in ranges.split()]
    return tuple(chr(point) for first, last in bounds for point in range(first, last + 1))


# Emoji and letters of many scripts, wide enough to train every byte token that UTF-8 uses.
SYMBOLS = characters("1F300-1F5FF 1F600-1F64F 1F680-1F6C5 1F90C-1F9FF 2600-27BF 2190-21FF")
LETTERS = characters(
    "00C0-00D6 0100-017F 0391-03A1 0410-044F 0531-0556 05D0-05EA 0621-064A 0905-0939 0E01-0E30 "
    "10D0-10F0 3041-30FA 4E00-9FA5 AC00-D7A3"
)
