"""Adam in one kernel: torch's own, called without what torch.optim does around it, which costs as much again."""

import torch
from torch import Tensor, nn


class Adam:
    """Adam (Kingma and Ba, 2015) on a network's parameters.

    L2 pulls at weights, not at biases or BatchNorm's gains, which it would drive to 0 where Q is flat. `schedule` sets
    the learning rate as a share of `lr`; it is a tensor, because a CUDA graph reads it at each replay.
    """

    def __init__(self, network: nn.Module, lr: float, decay: float = 0.0):
        self.lr, self.parameters = lr, list(network.parameters())
        device = self.parameters[0].device
        self._rate = torch.tensor(lr, device=device, dtype=torch.float64 if device.type == "cpu" else torch.float32)
        self._step = torch.zeros((), device=self.parameters[0].device)
        self._moments = [[torch.zeros_like(p, requires_grad=False) for p in self.parameters] for _ in range(2)]
        weights = [i for i, p in enumerate(self.parameters) if p.ndim > 1]
        others = [i for i, p in enumerate(self.parameters) if p.ndim <= 1]
        self._groups = [(weights, decay), (others, 0.0)] if decay else [(weights + others, 0.0)]

    def schedule(self, share: float) -> None:
        """Learn at this share of `lr` from now on."""
        self._rate.fill_(self.lr * share)

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Along the gradients of the last backward pass."""
        self._step += 1
        for chosen, decay in self._groups:
            parameters = [self.parameters[i] for i in chosen]
            torch._fused_adam_(
                parameters, [p.grad for p in parameters], *([moment[i] for i in chosen] for moment in self._moments),
                [], [self._step] * len(chosen), lr=self._rate, beta1=0.9, beta2=0.999, weight_decay=decay, eps=1e-8,
                amsgrad=False, maximize=False,
            )  # fmt: skip

    def tensors(self) -> dict[str, Tensor]:
        """Its memory, as `<index of the parameter>.<field>`."""
        memory = {f"{index}.step": self._step.clone() for index in range(len(self.parameters))}
        return memory | self._named_moments()

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Go on from `tensors()`; from nothing, begin anew."""
        nothing = torch.zeros((), device=self._step.device)
        self._step.copy_(tensors.get("0.step", nothing))
        for name, moment in self._named_moments().items():
            moment.copy_(tensors.get(name, nothing))

    def _named_moments(self) -> dict[str, Tensor]:
        names = ("exp_avg", "exp_avg_sq")
        return {
            f"{i}.{name}": moment for name, moments in zip(names, self._moments) for i, moment in enumerate(moments)
        }
