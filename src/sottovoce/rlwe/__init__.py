"""Parameters, keys and key switching of schemes over RLWE; what BGV (and later CKKS) have in common."""

from sottovoce.rlwe.galois import GENERATOR, ROW_SWAP, galois_element, position_slots, slot_positions
from sottovoce.rlwe.keys import (
    GaloisKeys,
    KeyGenerator,
    PublicKey,
    RelinearizationKey,
    SecretKey,
    SwitchingKey,
)
from sottovoce.rlwe.keyswitch import KeySwitcher, key_switcher
from sottovoce.rlwe.parameters import Parameters, ParametersSpec

__all__ = [
    "GENERATOR",
    "GaloisKeys",
    "KeyGenerator",
    "KeySwitcher",
    "Parameters",
    "ParametersSpec",
    "PublicKey",
    "ROW_SWAP",
    "RelinearizationKey",
    "SecretKey",
    "SwitchingKey",
    "galois_element",
    "key_switcher",
    "position_slots",
    "slot_positions",
]
