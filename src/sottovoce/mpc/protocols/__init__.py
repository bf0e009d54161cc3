"""The two-party protocols behind the requests: one file per family, each protocol a generator.

A symmetric protocol yields the pieces it opens and is resumed with the pieces the other party opened, so that
`TwoPartyArithmetic.exchange` can run any number of them in one exchange.
"""
