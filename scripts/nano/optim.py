"""Muon for hidden matrices, Adam for the rest, one schedule for both."""

import torch
from torch import Tensor

from nano.checkpoint import number_format


def _orthogonal(g: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration to the nearest semi-orthogonal matrices of a stack [n, out, in]."""
    flip = g.shape[-2] > g.shape[-1]
    x = g.mT if flip else g
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        s = x @ x.mT
        x = 3.4445 * x + (-4.775 * s + 2.0315 * s @ s) @ x
    return x.mT if flip else x


def uses_muon(name: str, p: Tensor) -> bool:
    """Quantised linears, experts and compressor projections; thin matrices stay with Adam."""
    return number_format(name) in ("fp4", "fp8") or name.endswith(
        ("compressor.wkv.weight", "compressor.wgate.weight")
    )


class Optimiser:
    """Steps a dict of parameters; its state is a plain dict for resuming."""

    def __init__(self, params: dict[str, Tensor], decay: float = 0.1):
        self.params, self.decay = params, decay
        self.state: dict[str, dict[str, Tensor]] = {}
        self.shapes: dict[tuple, list[str]] = {}
        self.plain: list[str] = []
        for name, p in params.items():
            if not p.requires_grad:
                continue
            if uses_muon(name, p):
                self.shapes.setdefault(tuple(p.shape), []).append(name)
                self.state[name] = {"m": torch.zeros_like(p)}
            else:
                self.plain.append(name)
                self.state[name] = {"m": torch.zeros_like(p), "v": torch.zeros_like(p)}

    @torch.no_grad()
    def step(self, number: int, muon_rate: float, adam_rate: float):
        """Update every parameter that has a gradient, then drop the gradients."""
        for shape, names in self.shapes.items():
            self._muon(shape, names, muon_rate)
        for name in self.plain:
            self._adam(name, number, adam_rate)
        for p in self.params.values():
            p.grad = None

    def _muon(self, shape: tuple, names: list[str], rate: float):
        momenta = []
        for name in names:
            grad = self.params[name].grad
            m = self.state[name]["m"].mul_(0.95).add_(grad)
            momenta.append(grad.add(m, alpha=0.95))
        update = _orthogonal(torch.stack(momenta).flatten(0, -3)).unflatten(0, (len(names), -1))
        # the root of the larger side gives every element the same root mean square, 0.2
        update = update * (0.2 * max(shape[-2:]) ** 0.5)
        for name, u in zip(names, update, strict=True):
            p = self.params[name]
            p.mul_(1 - rate * self.decay).sub_(u.view_as(p), alpha=rate)

    def _adam(self, name: str, number: int, rate: float):
        p, s = self.params[name], self.state[name]
        s["m"].lerp_(p.grad, 0.1)
        s["v"].lerp_(p.grad.square(), 0.02)
        m, v = s["m"] / (1 - 0.9**number), s["v"] / (1 - 0.98**number)
        p.sub_(m / (v.sqrt() + 1e-9), alpha=rate)
