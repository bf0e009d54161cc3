"""The text that calibration runs on: written for this package, a few hundred tokens of several kinds."""

from __future__ import annotations

CHATS = (
    ("Can you explain in two or three sentences why the sky is blue during the day and red in the evening?"),
    (
        "Write a short, friendly e-mail to my neighbour. Our dog dug up her tulips, and I want to "
        "apologise and offer to plant new ones next weekend."
    ),
    ("What is 17 times 23? Show the steps, then give only the number on the last line."),
)

PROSE = (
    "The harbour had been quiet since the last ferry left. Gulls walked along the wall as if they "
    "owned it, and the old man who sold newspapers folded his table, counted the coins twice and put "
    "them into a tin that had once held tea. In 1974, when he came here, there were eleven boats; "
    'now there are two, and one of them is painted every spring but never sails. "People like to '
    'look at it," he said, "and looking is free." The city council has other plans: a hotel with 240 '
    "rooms, a car park, and a pier made of steel and glass. According to the report, published in "
    "March, the project will cost 38.5 million euros and create about 300 jobs. Nobody has asked the "
    "gulls.\n\nA photon carries energy in proportion to its frequency. When light passes through a "
    "prism, the shorter waves bend more than the longer ones, which is why violet lies at one edge "
    "of the spectrum and red at the other."
)

MIXED = (
    "def mean(values):\n    total = 0.0\n    for i, value in enumerate(values):\n        total += "
    "value\n    return total / max(len(values), 1)\n\n# TODO: handle NaN\nprint(mean([1, 2, 3.5]))  "
    "# 2.1666\n\nShopping list:\n- 2 kg potatoes\n- milk (1.5 %)\n- bread, butter; cheese?\n- 12 "
    "eggs\n\nDer Zug nach Köln fährt um 7:45 Uhr von Gleis 3 ab. Où est la bibliothèque, s'il vous "
    "plaît? ¡Hasta mañana! Пока. 你好。 = Overview = \n\n The @-@ sign, e.g. user@example.com, costs $ "
    "1,299.00 (see https://example.com/a?b=c&d=1). AND SO ON AND SO ON...\n"
)
