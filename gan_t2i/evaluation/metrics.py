"""Figures that compare two sets of pictures by their features: pure functions, one paper each.

Legend: N real pictures, M generated ones, D features, P prompts, S seeds. Tensors are on the CPU. Distances are computed in float64: in
float32 the fast way to compute them leaves equal pictures 0.01 apart.
"""

import torch
from torch import Tensor

NEIGHBOURS = 5  # k of density and coverage (Naeem et al., sec. 4.3); precision and recall take 3 (Kynkaanniemi et al., sec. 2)
PR_NEIGHBOURS = 3
FRECHET_SHARE = 2  # a covariance of D features needs more than this many times D samples


def kid(real: Tensor, generated: Tensor, rng: torch.Generator, *, subsets: int = 50, most: int = 1000) -> tuple[float, float]:
    """Kernel inception distance of `real` [N, D] and `generated` [M, D]: unbiased, so below 0 as often as above for equal distributions.

    Returns the mean and the standard deviation of `mmd` over random subsets of half the smaller set, `most` at most (Binkowski et al. 2018,
    arXiv 1801.01401, sec. 4). The subsets overlap: the deviation is theirs, not the standard error of the mean.
    """
    size = min(most, min(len(real), len(generated)) // 2)
    assert size >= 2, (len(real), len(generated))
    values = torch.stack([mmd(*(x[torch.randperm(len(x), generator=rng)[:size]] for x in (real, generated))) for _ in range(subsets)])
    return values.mean().item(), values.std().item()


def mmd(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased squared maximum mean discrepancy of x [N, D] and y [M, D] with the kernel (x.y / D + 1)^3, a scalar."""

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a.double() @ b.double().T / a.shape[1] + 1) ** 3

    def within(a: Tensor) -> Tensor:
        values = kernel(a, a)
        return (values.sum() - values.diagonal().sum()) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * kernel(x, y).mean()


def frechet(real: Tensor, generated: Tensor) -> float:
    """Frechet distance of the Gaussians with the means and covariances of `real` [N, D] and `generated` [M, D].

    |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)) (Heusel et al. 2017, arXiv 1706.08500, eq. 6), called FID with the features of Inception.
    Biased upwards: see `enough_for_frechet`.
    """
    means = [x.double().mean(dim=0) for x in (real, generated)]
    first, second = (torch.cov(x.double().T) for x in (real, generated))
    values, vectors = torch.linalg.eigh(first)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T  # symmetric
    # S1^(1/2) S2 S1^(1/2) is symmetric, and its eigenvalues are those of S1 S2
    cross = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    return ((means[0] - means[1]).square().sum() + first.trace() + second.trace() - 2 * cross).item()


def enough_for_frechet(count: int, width: int) -> bool:
    """True if `count` samples on each side are enough to compare covariances of `width` features."""
    return count > FRECHET_SHARE * width


def precision_recall(real: Tensor, generated: Tensor, k: int = PR_NEIGHBOURS) -> tuple[float, float]:
    """Share of `generated` [M, D] inside the manifold of `real` [N, D], and of `real` inside that of `generated`.

    A manifold is the union of balls around its samples, each up to the k-th nearest other (Kynkaanniemi et al. 2019, arXiv 1904.06991, eq. 1).
    """
    between = distances(real, generated)  # [N, M]
    precision = (between <= radii(real, k)[:, None]).any(dim=0).float().mean().item()
    recall = (between <= radii(generated, k)[None, :]).any(dim=1).float().mean().item()
    return precision, recall


def density_coverage(real: Tensor, generated: Tensor, k: int = NEIGHBOURS) -> tuple[float, float]:
    """Mean number of real balls that a generated picture [M, D] lies in, over k; and the share of real pictures [N, D] with one in their ball.

    Naeem et al. 2020, arXiv 2002.09797, eq. 4 and 5. For equal distributions density is 1 (it is higher where pictures crowd), and coverage
    about 1 - 1 / 2^k.
    """
    inside = distances(real, generated) <= radii(real, k)[:, None]  # [N, M]
    return inside.float().sum(dim=0).mean().item() / k, inside.any(dim=1).float().mean().item()


def radii(features: Tensor, k: int) -> Tensor:
    """Distance [N] of each of `features` [N, D] to its k-th nearest other, or to the farthest if there are fewer."""
    others = distances(features, features).fill_diagonal_(torch.inf)
    return others.kthvalue(min(k, len(features) - 1), dim=1).values


def nearest(queries: Tensor, bank: Tensor, k: int = 1) -> tuple[Tensor, Tensor]:
    """Distances and indices [M, k] of the `k` members of `bank` [N, D] nearest to each of `queries` [M, D], nearest first."""
    parts = [distances(part, bank).topk(k, dim=1, largest=False) for part in queries.split(1024)]
    return torch.cat([part.values for part in parts]), torch.cat([part.indices for part in parts])


def diversity(by_prompt: Tensor, real: Tensor) -> float:
    """Mean distance between the pictures of one prompt [P, S, D], over that between real pictures [N, D] of different captions.

    0 means that all seeds give the same picture, 1 that they differ as much as real pictures of different captions.
    """
    return _mean_distance(by_prompt) / _mean_distance(real[None])


def own_first(generated: Tensor, real: Tensor, candidates: int, rng: torch.Generator) -> float:
    """Return the share of `generated` [N, D] whose nearest among `candidates` real ones is its own, the same row of `real` [N, D].

    The other candidates are drawn from `real` at random. With fewer rows than candidates, all of them are.
    """
    count = min(candidates, len(real))
    keys = torch.rand(len(real), len(real), generator=rng).fill_diagonal_(2.0)
    chosen = keys.topk(count, dim=1).indices  # [N, count], the own row first
    found = distances(generated, real).gather(1, chosen)
    return (found.argmin(dim=1) == 0).double().mean().item()


def _mean_distance(groups: Tensor) -> float:
    """Mean distance between the members of each group [G, S, D], S >= 2."""
    size = groups.shape[1]
    return (distances(groups, groups).sum(dim=(1, 2)) / (size * (size - 1))).mean().item()


def distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances [..., N, M] of x [..., N, D] and y [..., M, D], float64."""
    return torch.cdist(x.double(), y.double())
