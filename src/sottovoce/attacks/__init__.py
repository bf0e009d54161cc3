"""Attacks on our own protocols: each fails on the product as it is, and succeeds on a control in which one
safeguard is left out. An attack that could never succeed would prove nothing by failing."""
