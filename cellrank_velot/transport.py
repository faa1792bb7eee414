"""Entropic optimal transport of many small problems at once: the couplings between windows of cells.

Depends on torch only; knows neither cells nor time. Problems of one batch have one padded shape.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Couplings", "sinkhorn"]

# Between two looks at the error; POT looks as often, so unconverged plans can be compared, too.
CHECK_EVERY = 10
# A scaling factor beyond exp(+-150) would lose digits in the plan long before it leaves the range of float64.
MAX_LOG_SCALING = 150.0


@dataclass(frozen=True, eq=False)
class Couplings:
    """Transport plans of a batch of problems.

    Attributes
    ----------
    plan
        Array of shape ``[n_problems, n_source, n_target]``. Rows sum to the source weights exactly.
    marginal_error
        Array of shape ``[n_problems]``: Euclidean norm of the deviation of the column sums from the target
        weights.
    converged
        Array of shape ``[n_problems]``: whether that error is within the tolerance.
    n_iter
        Array of shape ``[n_problems]``: iterations done.
    """

    plan: torch.Tensor
    marginal_error: torch.Tensor
    converged: torch.Tensor
    n_iter: torch.Tensor


def sinkhorn(
    cost: torch.Tensor,
    source_weights: torch.Tensor,
    target_weights: torch.Tensor,
    epsilon: float,
    *,
    tol: float = 1e-6,
    max_iter: int = 500,
) -> Couplings:
    r"""Solve balanced entropic transport for a batch of problems.

    Minimises :math:`\langle P, C \rangle - \epsilon H(P)` over plans with the given marginals. The dual potentials
    live in the log domain. Iterations scale the plan that they give, by matrix-vector products, which is five times
    faster than a log-sum-exp; a problem whose scalings leave a safe range takes its steps by log-sum-exp instead.
    So a small ``epsilon`` neither overflows nor loses mass.

    Parameters
    ----------
    cost
        Costs of shape ``[n_problems, n_source, n_target]``, finite.
    source_weights, target_weights
        Marginals of shape ``[n_problems, n_source]`` and ``[n_problems, n_target]``, each row summing to one.
        A weight of zero marks padding.
    epsilon
        Entropic regularisation, in units of the cost.
    tol
        Tolerance of the column sums, Euclidean norm of their deviation, as in POT.
    max_iter
        Bound on the number of iterations of each problem.

    Returns
    -------
    The plans, and how well each was solved.

    Notes
    -----
    Sinkhorn's algorithm :cite:`cuturi:13` with the stabilisation of :cite:`schmitzer:19`.
    """
    a, b = source_weights, target_weights
    padding = (a == 0).unsqueeze(2) | (b == 0).unsqueeze(1)
    log_kernel = (cost / -epsilon).masked_fill_(padding, -torch.inf)
    phi, psi = torch.zeros_like(a), torch.zeros_like(b)
    plan = torch.zeros_like(log_kernel)
    error = torch.full_like(a[:, 0], torch.inf)
    n_iter = torch.zeros(cost.shape[0], dtype=torch.long, device=cost.device)
    active = torch.arange(cost.shape[0], device=cost.device)
    done = 0
    while done < max_iter and active.numel():
        # Solved problems leave, the rest go on with the potentials that they have.
        batch = _Scaled(log_kernel[active], a[active], b[active], phi[active], psi[active])
        remaining = torch.arange(active.numel(), device=cost.device)
        safe = True
        while safe and done < max_iter and 2 * remaining.numel() > active.numel():
            # POT looks at the first iteration and each tenth after it.
            steps = min(CHECK_EVERY, max_iter - done) if done else 1
            safe = batch.advance(steps)
            done += steps
            n_iter[active[remaining]] = done
            solved = remaining[batch.error[remaining] <= tol]
            plan[active[solved]], error[active[solved]] = batch.plan(solved), batch.error[solved]
            remaining = remaining[batch.error[remaining] > tol]
        active = active[remaining]
        phi[active], psi[active] = batch.phi[remaining], batch.psi[remaining]
    plan[active] = _plan(log_kernel[active], phi[active], psi[active])
    error[active] = (plan[active].sum(1) - b[active]).norm(dim=1)
    return Couplings(plan=plan, marginal_error=error, converged=error <= tol, n_iter=n_iter)


class _Scaled:
    """Iterations ``u K v`` around fixed potentials: ``K`` is the plan at the start, so both stay near one."""

    def __init__(
        self, log_kernel: torch.Tensor, a: torch.Tensor, b: torch.Tensor, phi: torch.Tensor, psi: torch.Tensor
    ) -> None:
        self.log_kernel, self.a, self.b, self.phi, self.psi = log_kernel, a, b, phi, psi
        self.kernel = _plan(log_kernel, phi, psi)
        self.kernel_t = self.kernel.transpose(1, 2).contiguous()
        # Padding divides zero by one, not by zero.
        self.pad_a, self.pad_b = (a == 0).to(a.dtype).unsqueeze(1), (b == 0).to(b.dtype).unsqueeze(1)
        self.u, self.v = torch.ones_like(self.pad_a), torch.ones_like(self.pad_b)
        self.start = phi, psi
        self.error = torch.full_like(a[:, 0], torch.inf)

    def advance(self, n_steps: int) -> bool:
        """Take steps; return whether all scalings stayed in the safe range.

        A problem that left it takes these steps by log-sum-exp. It is not solved before its kernel was made anew.
        """
        a, b = self.a.unsqueeze(1), self.b.unsqueeze(1)
        u, v, before = self.u, self.v, self.phi
        for _ in range(n_steps):
            v = b / torch.baddbmm(self.pad_b, u, self.kernel)
            u = a / torch.baddbmm(self.pad_a, v, self.kernel_t)
        self.error = (v * torch.bmm(u, self.kernel) - b).squeeze(1).norm(dim=1)
        log_u = torch.where(self.a > 0, u.squeeze(1).log(), 0.0)
        log_v = torch.where(self.b > 0, v.squeeze(1).log(), 0.0)
        extreme = torch.maximum(log_u.abs().amax(1), log_v.abs().amax(1))
        unsafe = torch.nonzero(~(extreme < MAX_LOG_SCALING)).squeeze(1)  # true for nan, too
        self.u, self.v, self.phi = u, v, self.start[0] + log_u
        self.psi = self.start[1] + log_v
        if unsafe.numel():
            steps = _log_steps(self.log_kernel[unsafe], before[unsafe], self.a[unsafe], self.b[unsafe], n_steps)
            self.phi[unsafe], self.psi[unsafe] = steps
            self.error[unsafe] = torch.inf
        return unsafe.numel() == 0

    def plan(self, which: torch.Tensor) -> torch.Tensor:
        """Return the plans of some problems."""
        return self.u[which].transpose(1, 2) * self.kernel[which] * self.v[which]


def _log_steps(
    log_kernel: torch.Tensor, phi: torch.Tensor, a: torch.Tensor, b: torch.Tensor, n_steps: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Iterate by log-sum-exp: exact at any scale. Padding keeps a potential of zero."""
    psi = torch.zeros_like(b)
    for _ in range(n_steps):
        psi = torch.where(b > 0, b.log() - torch.logsumexp(log_kernel + phi.unsqueeze(2), 1), 0.0)
        phi = torch.where(a > 0, a.log() - torch.logsumexp(log_kernel + psi.unsqueeze(1), 2), 0.0)
    return phi, psi


def _plan(log_kernel: torch.Tensor, phi: torch.Tensor, psi: torch.Tensor) -> torch.Tensor:
    return (log_kernel + phi.unsqueeze(2)).add_(psi.unsqueeze(1)).exp_()
