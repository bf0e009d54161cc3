"""Twenty prompts of many kinds, written for this package: what `bench agreement` answers."""

PROMPTS = (
    "Write two sentences about a harbour in winter.",
    "What is the capital of Portugal?",
    "def median(values):\n    ordered = sorted(values)\n",
    "List five vegetables that grow under the ground:\n1.",
    "17 + 26 = 43\n38 + 45 = 83\n54 + 19 =",
    "Erkläre in einem Satz, warum der Himmel blau ist.",
    "Écris une phrase courte sur le pain.",
    "¿Cuántos días tiene una semana?",
    "Explain to a child how a bicycle stays upright.",
    "SELECT name, price FROM products WHERE",
    'Complete this JSON: {"city": "Oslo", "population": 709037, "rivers": ["Akerselva",',
    "Dear Ms. Okafor,\n\nThank you for your letter of 3 March.\n\n",
    "Antidisestablishmentarianism, floccinaucinihilipilification and pneumonoultramicroscopic are",
    "Translate to Italian: Where is the train station?",
    "What rhymes with orange?\n\n\n",
    "Give me a shopping list for pancakes, one item per line.",
    "Roses are red,\nViolets are blue,\n",
    "The temperature was -40 °C; 3.14159, 2.71828 and 1.41421 are",
    "A farmer has 12 sheep and buys 5 more, then sells 4. How many sheep are left? Think step by step.",
    "私の名前は",
)
