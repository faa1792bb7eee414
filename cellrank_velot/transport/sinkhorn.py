"""Entropic optimal transport of many problems at once, balanced or unbalanced, padded to one shape."""

from __future__ import annotations

from dataclasses import dataclass

from cellrank_velot._utils.lazy import torch

__all__ = ["Couplings", "sinkhorn"]

# Iterations between two checks of the error, as in POT, so that unconverged plans can be compared.
CHECK_EVERY = 10
# A scaling factor beyond exp(+-150) would lose digits in the plan long before it leaves the range of float64.
MAX_LOG_SCALING = 150.0


@dataclass(frozen=True, eq=False)
class Couplings:
    """Transport plans of a batch of problems, and how well each was solved."""

    plan: torch.Tensor  # [n_problems, n_source, n_target]; balanced, rows sum to the source weights exactly
    # [n_problems]: Euclidean norm of the deviation of the column sums from the target weights, or of an unbalanced
    # problem from what its fixed-point equation asks for.
    marginal_error: torch.Tensor
    converged: torch.Tensor
    n_iter: torch.Tensor


def sinkhorn(
    cost: torch.Tensor,
    source_weights: torch.Tensor,
    target_weights: torch.Tensor,
    epsilon: float,
    *,
    tau: tuple[float, float] = (1.0, 1.0),
    tol: float = 1e-6,
    max_iter: int = 500,
) -> Couplings:
    r"""Solve entropic transport :cite:`cuturi:13` for a batch of problems, balanced or unbalanced :cite:`chizat:18`.

    Costs have the shape ``[n_problems, n_source, n_target]``, weights ``[n_problems, n_source]`` and ``[n_problems,
    n_target]``; they sum to one, and a weight of zero marks padding. ``tol`` is that of the column sums, as in POT.

    Balanced, it minimises :math:`\langle P, C \rangle - \epsilon H(P)` over plans with the given marginals. With
    ``tau`` below one it minimises :math:`\langle P, C \rangle + \epsilon \, \mathrm{KL}(P | a b^\top) + \lambda_a
    \mathrm{KL}(P 1 | a) + \lambda_b \mathrm{KL}(P^\top 1 | b)`, where :math:`\tau = \lambda / (\lambda + \epsilon)`,
    so that mass may be created and lost. The dual potentials are kept as logarithms :cite:`schmitzer:19`. Iterations
    scale the plan by matrix-vector products, several times faster than log-sum-exp. A problem whose scalings leave the
    safe range takes its steps by log-sum-exp, so that a small ``epsilon`` neither overflows nor loses mass.
    """
    log_kernel = cost / -epsilon
    if tau != (1.0, 1.0):
        # Plans are compared with the product of the weights; with fixed marginals that would change nothing.
        log_kernel += source_weights.log().unsqueeze(2) + target_weights.log().unsqueeze(1)
    padding = (source_weights == 0).unsqueeze(2) | (target_weights == 0).unsqueeze(1)
    if padding.any():
        log_kernel.masked_fill_(padding, -torch.inf)
    plan = torch.empty_like(log_kernel)
    error = torch.full_like(source_weights[:, 0], torch.inf)
    n_iter = torch.zeros(cost.shape[0], dtype=torch.long, device=cost.device)
    batch = _Scaled(log_kernel, source_weights, target_weights, tau)
    unsolved = batch.problem
    done = 0
    while done < max_iter and unsolved.numel():
        # POT checks the first iteration and each tenth after it.
        steps = min(CHECK_EVERY, max_iter - done) if done else 1
        batch.advance(steps)
        done += steps
        n_iter[batch.problem[unsolved]] = done
        solved = unsolved[batch.error[unsolved] <= tol]
        plan[batch.problem[solved]], error[batch.problem[solved]] = batch.plan(solved), batch.error[solved]
        unsolved = unsolved[~(batch.error[unsolved] <= tol)]
        if 2 * unsolved.numel() <= batch.problem.numel():
            batch.reduce(unsolved)
            unsolved = torch.arange(unsolved.numel(), device=cost.device)
    left = batch.problem[unsolved]
    plan[left] = _plan(log_kernel[left], batch.phi[unsolved], batch.psi[unsolved])
    if tau[0] == 1 and left.numel():
        # Potentials of 1e12 have no digits left for the sums: scale the rows once more.
        rows, wanted_rows = plan[left].sum(2), source_weights[left]
        plan[left] *= (wanted_rows / torch.where(rows > 0, rows, 1.0)).unsqueeze(2)
    column_sums = plan[left].sum(1)
    wanted = _wanted(target_weights[left], column_sums, batch.psi[unsolved], tau[1])
    error[left] = (column_sums - wanted).norm(dim=1)
    return Couplings(plan=plan, marginal_error=error, converged=error <= tol, n_iter=n_iter)


class _Scaled:
    """Plans ``u K v`` of the problems that are not solved yet, around a kernel K at fixed potentials.

    ``phi`` and ``psi`` are the potentials over epsilon, shape ``[n, n_source]`` and ``[n, n_target]``.
    """

    def __init__(
        self, log_kernel: torch.Tensor, a: torch.Tensor, b: torch.Tensor, tau: tuple[float, float] = (1.0, 1.0)
    ) -> None:
        self.log_kernel = log_kernel
        self.tau = tau
        self.problem = torch.arange(a.shape[0], device=a.device)
        self.a, self.b = a.unsqueeze(1), b.unsqueeze(1)
        # Padding divides zero by one, not by zero.
        self.pad_a, self.pad_b = ((weights == 0).to(a.dtype) for weights in (self.a, self.b))
        self.u, self.v = torch.ones_like(self.a), torch.ones_like(self.b)
        self.phi, self.psi = torch.zeros_like(a), torch.zeros_like(b)
        self.fixed_phi, self.fixed_psi = self.phi, self.psi
        self.kernel = log_kernel.exp()
        self.error = torch.full_like(a[:, 0], torch.inf)

    def advance(self, n_steps: int) -> None:
        """Take steps; a problem whose scalings leave the safe range takes them by log-sum-exp."""
        before = self.phi
        if max(self.tau) < 1:
            translation = self._translation()
            before = before + translation
            self.u = self.u * translation.exp().unsqueeze(2)
        for _ in range(n_steps):
            reached = torch.baddbmm(self.pad_b, self.u, self.kernel)
            self.v = _relaxed(self.b / reached, self.tau[1], self.fixed_psi)
            reached = torch.baddbmm(self.pad_a, self.v, self.kernel.transpose(1, 2))
            self.u = _relaxed(self.a / reached, self.tau[0], self.fixed_phi)
        log_u = torch.where(self.a > 0, self.u.log(), 0.0).squeeze(1)
        log_v = torch.where(self.b > 0, self.v.log(), 0.0).squeeze(1)
        self.phi, self.psi = self.fixed_phi + log_u, self.fixed_psi + log_v
        extreme = torch.maximum(log_u.abs().amax(1), log_v.abs().amax(1))
        unsafe = torch.nonzero(~(extreme < MAX_LOG_SCALING)).squeeze(1)  # true for nan, too
        if unsafe.numel():
            weights = self.a[unsafe].squeeze(1), self.b[unsafe].squeeze(1)
            log_kernel = self.log_kernel[self.problem[unsafe]]
            potentials = _log_steps(log_kernel, before[unsafe], *weights, n_steps, self.tau)
            self._fix(unsafe, *potentials)
        reached = torch.bmm(self.u, self.kernel)
        wanted = _wanted(self.b, reached, self.fixed_psi.unsqueeze(1), self.tau[1])
        self.error = (self.v * reached - wanted).squeeze(1).norm(dim=1)

    def _fix(self, which: torch.Tensor, phi: torch.Tensor, psi: torch.Tensor) -> None:
        """Take the kernel of some problems at these potentials."""
        self.phi[which], self.psi[which] = phi, psi
        self.fixed_phi, self.fixed_psi = self.fixed_phi.clone(), self.fixed_psi.clone()
        self.fixed_phi[which], self.fixed_psi[which] = phi, psi
        self.kernel[which] = _plan(self.log_kernel[self.problem[which]], phi, psi)
        self.u[which], self.v[which] = 1.0, 1.0

    def _translation(self) -> torch.Tensor:
        """Return what to add to the rows' potentials, and subtract from the columns', to set the mass right at once.

        Without it, the mass of nearly balanced problems takes thousands of steps to settle :cite:`sejourne:22`.
        """
        strength_a, strength_b = (tau / (1 - tau) for tau in self.tau)
        mass_a = torch.logsumexp(self.a.squeeze(1).log() - self.phi / strength_a, 1)
        mass_b = torch.logsumexp(self.b.squeeze(1).log() - self.psi / strength_b, 1)
        return (strength_a * strength_b / (strength_a + strength_b) * (mass_a - mass_b)).unsqueeze(1)

    def plan(self, which: torch.Tensor) -> torch.Tensor:
        """Return the plans of some problems."""
        return self.kernel[which].mul_(self.u[which].transpose(1, 2)).mul_(self.v[which])

    def reduce(self, which: torch.Tensor) -> None:
        """Keep some problems."""
        for name in ("problem", "a", "b", "pad_a", "pad_b", "u", "v", "phi", "psi", "fixed_phi", "fixed_psi"):
            setattr(self, name, getattr(self, name)[which])
        self.kernel = self.kernel[which]


def _relaxed(ratio: torch.Tensor, tau: float, fixed: torch.Tensor) -> torch.Tensor:
    """Return the scaling, relative to a fixed potential, of marginals that are kept with the strictness ``tau``."""
    return ratio if tau == 1 else ratio**tau * ((tau - 1) * fixed).exp().unsqueeze(1)


def _wanted(weights: torch.Tensor, sums: torch.Tensor, potential: torch.Tensor, tau: float) -> torch.Tensor:
    """Return what column sums at these potentials should be, by logarithms: sums may be tiny."""
    return weights if tau == 1 else weights**tau * ((1 - tau) * (sums.log() - potential)).exp()


def _log_steps(
    log_kernel: torch.Tensor,
    phi: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    n_steps: int,
    tau: tuple[float, float],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Iterate by log-sum-exp: exact at any scale. Padding keeps a potential of zero."""
    psi = torch.zeros_like(b)
    for _ in range(n_steps):
        psi = torch.where(b > 0, tau[1] * (b.log() - torch.logsumexp(log_kernel + phi.unsqueeze(2), 1)), 0.0)
        phi = torch.where(a > 0, tau[0] * (a.log() - torch.logsumexp(log_kernel + psi.unsqueeze(1), 2)), 0.0)
    return phi, psi


def _plan(log_kernel: torch.Tensor, phi: torch.Tensor, psi: torch.Tensor) -> torch.Tensor:
    return (log_kernel + phi.unsqueeze(2)).add_(psi.unsqueeze(1)).exp_()
