"""Trees of keys (Goldreich, Goldwasser, Micali): one party knows all 256 leaves, the other all but one of its
choice.

A node's children are AES_node(0) and AES_node(1). The owner offers, for every level, the XOR of all left
children and the XOR of all right children; with the one that avoids the path to its secret leaf, the other
party fills in the level's missing sibling. Bit 7 − l of the leaf number decides on level l.
"""

import os

import numpy as np
import numpy.typing as npt

from sottovoce import _native

U8 = npt.NDArray[np.uint8]

DEPTH = 8
LEAVES = 1 << DEPTH


def full_trees(count: int) -> tuple[U8, U8]:
    """Fresh trees:

    leaves (count, 256, 16), and the sums to offer (count, 8, 2, 16): per level left and right.
    """
    nodes = np.frombuffer(os.urandom(16 * count), np.uint8).reshape(count, 1, 16)
    sums = np.empty((count, DEPTH, 2, 16), np.uint8)
    for level in range(DEPTH):
        nodes = _children(nodes)
        for side in (0, 1):
            sums[:, level, side] = np.bitwise_xor.reduce(nodes[:, side::2], axis=1)
    return nodes, sums


def chosen_sides(points: U8) -> U8:
    """(count, 8): which sum to take on each level so that leaf points[i] of tree i stays unknown."""
    levels = np.arange(DEPTH)[::-1].astype(np.uint8)
    return (points[:, None] >> levels & np.uint8(1)) ^ np.uint8(1)


def punctured_trees(points: U8, sums: U8) -> U8:
    """Leaves (count, 256, 16) from the chosen sums (count, 8, 16); leaf points[i] of tree i is all zero."""
    count = len(points)
    trees = np.arange(count)
    nodes = np.zeros((count, 1, 16), np.uint8)
    for level in range(DEPTH):
        nodes = _children(nodes)
        path = (points >> np.uint8(DEPTH - 1 - level)).astype(np.int64)
        sibling = path ^ 1
        nodes[trees, path] = 0
        nodes[trees, sibling] = 0
        sides = np.bitwise_xor.reduce(nodes.reshape(count, -1, 2, 16), axis=1)
        nodes[trees, sibling] = sums[:, level] ^ sides[trees, sibling & 1]
    return nodes


def _children(nodes: U8) -> U8:
    """(count, m, 16) -> (count, 2m, 16)."""
    count, width, _ = nodes.shape
    out = np.empty((count * width, 2, 16), np.uint8)
    _native.aes_ctr(np.ascontiguousarray(nodes.reshape(-1, 16)), 0, out)
    return out.reshape(count, 2 * width, 16)
