"""The training loop: loss, schedule, router balance, saving and resuming."""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from nano import model
from nano.checkpoint import rounded
from nano.design import CONFIG, first_weights
from nano.optim import Optimiser
from nano.text import Sampler


@dataclass(frozen=True)
class Plan:
    """Everything that decides the result besides the text."""

    steps: int = 2400
    tokens: int = 2048  # a step
    short: int = 512  # sequence length until `rounding_from`
    long: int = 1024  # sequence length from there on, so that positions up to 1023 are trained
    muon_rate: float = 6e-3
    adam_rate: float = 4e-3
    warmup: int = 100
    decay_from: float = 0.4  # of all steps: rates fall linearly from here to 3 %
    sparse_from: float = 0.15  # dense attention over entries before, top-k after
    rounding_from: float = 0.7  # activation rounding, long sequences
    mtp_weight: float = 0.3
    index_weight: float = 0.1
    bias_rate: float = 1e-3
    seed: int = 20260


def rate_factor(plan: Plan, step: int) -> float:
    """Warm up, hold, decay."""
    fall = max(0.0, (step / plan.steps - plan.decay_from) / (1 - plan.decay_from))
    return min(1.0, (step + 1) / plan.warmup) * (1 - 0.97 * fall)


def losses(ids: Tensor, w: dict, cfg: dict, mode: model.Mode, trace: model.Trace):
    """Next-token loss, loss of the token after next, indexer loss; ids [B, T+2]."""
    now, following, target = ids[:, :-2], ids[:, 1:-1], ids[:, 2:]
    x = model.trunk(now, w, cfg, mode, trace)
    logits = model.logits_of(x, w, "", now.shape, cfg)
    main = cross_entropy(logits.flatten(0, 1), following.flatten())
    logits = model.mtp_logits(x, following, w, cfg, mode, trace)
    mtp = cross_entropy(logits.flatten(0, 1), target.flatten())
    return main, mtp, sum(trace.index_losses)


def balance(params: dict, trace: model.Trace, cfg: dict, rate: float):
    """Loss-free balancing: lift the bias of idle experts, lower that of busy ones."""
    experts = cfg["n_routed_experts"]
    for prefix, chosen in trace.choices.items():
        load = torch.bincount(chosen.flatten(), minlength=experts).float()
        params[prefix + "gate.bias"] += rate * torch.sign(load.mean() - load)


class Run:
    """One training run with its state in `work/state.pt`."""

    def __init__(self, work: Path, plan: Plan, documents: list[Tensor]):
        self.path, self.plan, self.sampler = work / "state.pt", plan, Sampler(documents)
        self.generator = torch.Generator().manual_seed(plan.seed)
        counts = torch.bincount(self.sampler.stream, minlength=CONFIG["vocab_size"])
        self.params = first_weights(CONFIG, counts, plan.seed)
        self.step = 0
        for name, p in self.params.items():
            p.requires_grad_(p.is_floating_point() and not name.endswith("gate.bias"))
        self.optimiser = Optimiser(self.params)
        if self.path.exists():
            self._resume()

    def _resume(self):
        saved = torch.load(self.path, weights_only=True)
        if saved["plan"] != asdict(self.plan):
            raise SystemExit(
                f"error: {self.path} belongs to another plan\n"
                f"  found    {saved['plan']}\n  expected {asdict(self.plan)}\n"
                "hint: use another --work folder or the same options"
            )
        with torch.no_grad():
            for name, p in self.params.items():
                p.copy_(saved["params"][name])
        self.optimiser.state = saved["optimiser"]
        self.generator.set_state(saved["generator"])
        self.step = saved["step"]

    def save(self):
        """Write the state beside the old one, then replace it, so a kill leaves a whole file."""
        state = {
            "plan": asdict(self.plan),
            "params": {name: p.detach() for name, p in self.params.items()},
            "optimiser": self.optimiser.state,
            "generator": self.generator.get_state(),
            "step": self.step,
        }
        fresh = self.path.with_suffix(".new")
        torch.save(state, fresh)
        fresh.replace(self.path)

    def one_step(self):
        """Train on one batch; return the three losses."""
        plan, done = self.plan, self.step / self.plan.steps
        late = done >= plan.rounding_from
        length = plan.long if late else plan.short
        ids = self.sampler.batch(plan.tokens // length, length + 2, self.generator)
        mode = model.Mode(quant=late, sparse=done >= plan.sparse_from, teach=True)
        trace = model.Trace()
        main, mtp, index = losses(ids, rounded(self.params), CONFIG, mode, trace)
        (main + plan.mtp_weight * mtp + plan.index_weight * index).backward()
        factor = rate_factor(plan, self.step)
        self.step += 1
        self.optimiser.step(self.step, plan.muon_rate * factor, plan.adam_rate * factor)
        balance(self.params, trace, CONFIG, plan.bias_rate * min(1.0, 2 * factor))
        return main.item(), mtp.item(), index.item()

    def train(self, log_every: int = 20, save_every: int = 100):
        """Run the remaining steps, printing mean losses in nats per token."""
        window, began = [], time.monotonic()
        while self.step < self.plan.steps:
            window.append(self.one_step())
            if self.step % log_every == 0:
                main, mtp, index = torch.tensor(window).mean(0).tolist()
                pace = (time.monotonic() - began) / len(window)
                print(
                    f"step {self.step}/{self.plan.steps}  main {main:.3f}  mtp {mtp:.3f}"
                    f"  index {index:.3f}  {pace:.3f} s/step",
                    flush=True,
                )
                window, began = [], time.monotonic()
            if self.step % save_every == 0:
                self.save()
        self.save()
