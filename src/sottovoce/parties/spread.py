"""What a cluster makes of the products of matrices in an estimate: `engines.cluster`, in numbers.

One worker on each node, with the node's cores for its kernels, all nodes in one team. Baby steps are made by
every worker for itself, tiles are shared, Horner's rule runs through the workers one after the other. Nothing
overlaps in these figures: products, the network, and the server's own work are added up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..bgv import SIMD
from ..engines.estimates import Estimate, Network, Phase
from ..engines.hybrid.linears import NAMES, matrix_shapes
from ..engines.hybrid.prepared import model_shapes
from ..errors import UsageError
from ..models.config import Config
from ..packing import Group, group_tokens
from ..packing.cost import CostModel
from .forecast import Course
from .machine import MachineSpeed

CIPHERTEXT = 2 * SIMD.limbs * SIMD.degree * 8  # bytes between nodes
_MACS = 6e9  # a second and core, of prepared matrices
_CODED, _PLAIN = 24, 2  # bytes a weight: as plaintexts of tiles, as it is


@dataclass(frozen=True)
class Nodes:
    """rtt_ms: round trip between two nodes. mbit: of a node's link, each way."""

    count: int
    cores: int = 1
    rtt_ms: float = 0.1
    mbit: float = 10_000.0

    @classmethod
    def parse(cls, count: int, cores: int, network: str) -> Nodes:
        """network: as `estimates.Network` reads it."""
        found = Network.parse(network)
        if not found.mbit:
            raise UsageError("--cluster-net is a network between nodes: RTT,MBIT such as 0.1,10000")
        return cls(count, cores, found.rtt_ms, found.mbit)

    def transfer(self, size: float) -> float:
        """Seconds of so many bytes on one link."""
        return size / (self.mbit * 125_000)


@dataclass(frozen=True)
class Share:
    """Seconds of products, one after the other, and bytes on the cluster's network.

    alone: of one core. repeated: what every worker does for itself. shared: tiles. chained: Horner's rule.
    network: transfers and waiting.
    """

    alone: float = 0.0
    repeated: float = 0.0
    shared: float = 0.0
    chained: float = 0.0
    network: float = 0.0
    bytes: int = 0

    def __add__(self, other: Share) -> Share:
        return Share(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __mul__(self, times: float) -> Share:
        return Share(*(times * one for one in vars(self).values()))

    @property
    def seconds(self) -> float:
        return self.repeated + self.shared + self.chained + self.network


def spread(
    found: Estimate, config: Config, course: Course, nodes: Nodes, speed: MachineSpeed | None = None
) -> Estimate:
    """The estimate of a server of the engine hybrid that is a cluster; others stay as they are."""
    if found.engine != "hybrid":
        return found
    lattice = (speed or MachineSpeed()).lattice
    passes = {
        "prefill": pass_share(config, course.private, nodes, lattice),
        "decode": pass_share(config, 1, nodes, lattice) * (course.new - 1),
        "prepare": prepared_share(config, course.prepared, nodes),
    }
    phases = tuple(_spread(phase, passes.get(phase.name), bool(course.prepared)) for phase in found.phases)
    weights = sum(d_out * d_in for d_out, d_in in model_shapes(config).values())
    # Rows are cut; for online products every node has all weights, and plaintexts of its own tiles.
    memory = (_PLAIN / nodes.count if course.prepared else _PLAIN + _CODED / nodes.count) * weights
    what = "prepare" if course.prepared else "decode"
    note = _note(nodes, passes[what] * (1 / max(1, course.prepared or course.new - 1)), what, memory)
    return replace(
        found,
        phases=phases,
        server_memory=found.server_memory - (0 if course.prepared else _CODED * weights),
        node_memory=round(memory),
        notes=(*found.notes, note),
    )


def pass_share(config: Config, tokens: int, nodes: Nodes, lattice: float = 1.0) -> Share:
    """The online products of one pass of so many tokens; the head's are of the last one."""
    shapes, total = matrix_shapes(config), Share()
    for name, (d_out, d_in) in shapes.items():
        times = config.layers if name in NAMES else 1
        for group in group_tokens(d_out, d_in, 1 if name == "head" else tokens, SIMD.degree):
            total += _product(group, nodes, lattice) * times
    return total


def prepared_share(config: Config, tokens: int, nodes: Nodes) -> Share:
    """Row blocks of all matrices for one batch: words to every node, results back."""
    total = Share()
    for d_out, d_in in model_shapes(config).values():
        macs, back = tokens * d_out * d_in, 8 * tokens * d_out
        sent = 8 * tokens * d_in * nodes.count
        wait = nodes.transfer(max(sent, back)) + nodes.rtt_ms / 1e3
        shared = macs / _MACS / (nodes.cores * nodes.count)
        total += Share(macs / _MACS, 0.0, shared, 0.0, wait, sent + back)
    return total


def _product(group: Group, nodes: Nodes, lattice: float) -> Share:
    """One product of `group.count` times `group.plan.tokens` tokens."""
    plan, cost, milli = group.plan, CostModel(sent=0.0, returned=0.0), lattice / 1e3
    alone = group.milliseconds(cost) * milli
    giants = plan.output_count * (plan.giants - 1) * cost.rotation * group.count * milli
    encoded = cost.encoded * plan.plaintext_count if plan.tokens > 1 else 0.0
    tiles = (group.count * cost.product * plan.plaintext_count + encoded) * milli
    workers = min(nodes.count, plan.output_count * plan.giants)
    # An output's giant steps lie with so many workers one after the other; outputs have nothing to do
    # with each other, nor have the tokens of a pass.
    hops = -(-workers // plan.output_count)
    together = min(nodes.cores * min(workers, plan.output_count), plan.output_count * group.count)
    inputs = group.sent_count * CIPHERTEXT * workers
    outputs = group.output_count * CIPHERTEXT * hops
    network = nodes.transfer(inputs) + (hops + 1) * nodes.rtt_ms / 2e3
    network += nodes.transfer(group.count * CIPHERTEXT) * hops + nodes.transfer(
        group.output_count * CIPHERTEXT
    )
    return Share(
        alone,
        (alone - tiles - giants) / nodes.cores,
        tiles / (nodes.cores * workers),
        giants / together,
        network,
        inputs + outputs,
    )


def _spread(phase: Phase, share: Share | None, prepared: bool) -> Phase:
    """With preparation a pass is taken to have no online products left to spread."""
    if share is None or (prepared and phase.name != "prepare"):
        return phase
    return replace(phase, elsewhere=share.seconds, cluster_bytes=round(share.bytes))


def _note(nodes: Nodes, share: Share, what: str, memory: float) -> str:
    of = f"{share.alone:.3g} s of one core become {share.seconds:.3g} s"
    parts = (
        f"{share.repeated:.2g} repeated by each, {share.shared:.2g} shared, {share.chained:.2g} in a chain"
    )
    return (
        f"{nodes.count} nodes of {nodes.cores} cores: products of matrices, a token ({what}): {of} "
        f"({parts}, {share.network:.2g} on the cluster's network, {share.bytes / 1e6:.3g} MB); "
        f"{memory / 1e9:.3g} GB a node"
    )
