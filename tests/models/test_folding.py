"""Contract: BatchNorm that weights take up changes answers by rounding alone; what would change them more stays."""

import copy

import pytest
import timm
import torch
from support import tiny
from torch import nn

from hf_deit.models.folding import fold_batch_norm


class Reused(nn.Module):
    """What its first convolution makes is normalised, and needed as it is, too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
        self.conv, self.norm, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        made = self.conv(self.stem(pixels))
        return self.head((self.norm(made).relu() + made).mean(dim=(2, 3)))


class Repeated(nn.Module):
    """One convolution with two BatchNorms, and a pair that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.norms, self.norm, self.head = nn.ModuleList(nn.BatchNorm2d(4) for _ in "ab"), nn.BatchNorm2d(4), None
        self.head = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        made = self.stem(pixels)
        made = self.norm(self.conv(self.norm(self.conv(made)).relu()))
        return self.head((self.norms[0](self.stem(pixels)) + self.norms[1](made)).mean(dim=(2, 3)))


class Curious(Reused):
    """Looks at what its BatchNorm is, and shares an activation with nothing."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        made = self.conv(self.stem(pixels))
        return self.head((self.norm(made) / self.norm.num_features).mean(dim=(2, 3)))


class Standardized(nn.Conv2d):
    """As of Big Transfer: its weights are standardised, so that scaling them does nothing."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        weight = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        return self._conv_forward(pixels, weight / weight.std(dim=(1, 2, 3), keepdim=True), self.bias)


MODELS = {
    "transformers' ResNet": (lambda: Logits(tiny.resnet()), lambda norms: norms),
    "with activations": (lambda: timm.create_model("lcnet_035"), lambda norms: norms),
    "before the convolution": (lambda: timm.create_model("densenet121", block_config=(2, 2)), lambda norms: 5),
    "needed elsewhere": (Reused, lambda _: 2),
    "looked at": (Curious, lambda _: 2),
    "of tokens": (lambda: Tokens(), lambda _: 0),
    "twice": (Repeated, lambda _: 1),
    "standardised": (lambda: head_on(Standardized(3, 4, 3), nn.BatchNorm2d(4)), lambda _: 0),
    "without weights": (lambda: head_on(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, affine=False)), int),
    "of each batch": (lambda: head_on(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)), lambda _: 0),
    "another class": (lambda: head_on(nn.Conv2d(3, 4, 3), type("Own", (nn.BatchNorm2d,), {})(4)), lambda _: 0),
}


class Tokens(nn.Module):
    """A BatchNorm over the places of tokens, not over the features that its linear layer makes."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(40, 6), nn.BatchNorm1d(120)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(pixels.flatten(1, 2))).mean(dim=1)


class Logits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model(pixel_values=pixels).logits


def head_on(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))


@torch.no_grad()
def with_statistics(model: nn.Module) -> int:
    """Random ones, as of a trained model; how many BatchNorms there are."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        if norm.running_mean is not None:
            norm.running_mean.normal_(0, 0.5)
            norm.running_var.uniform_(0.3, 3)
        if norm.weight is not None:
            norm.weight.uniform_(-2, 2)
            norm.bias.normal_()
    return len(norms)


@pytest.mark.parametrize("name", MODELS)
def test_a_folded_model_answers_alike(name):
    torch.manual_seed(0)
    make, expected = MODELS[name]
    model = make()
    norms = with_statistics(model.eval())
    before = copy.deepcopy(model)
    shown, others = torch.randn(2, 3, 40, 40), torch.randn(5, 3, 40, 40)
    folded = fold_batch_norm(model, lambda: model(shown))
    assert folded == expected(norms)
    with torch.no_grad():
        answers, wanted = model(others), before(others)
    assert torch.equal(answers, wanted) if not folded else torch.allclose(answers, wanted, rtol=1e-4, atol=1e-4)
    assert with_statistics(model) == norms - folded
    assert not any(module._forward_hooks for module in model.modules())


def test_what_is_folded_in_bfloat16_stays_as_near_as_bfloat16_is():
    torch.manual_seed(0)
    model = tiny.resnet().eval()
    with_statistics(model)
    pixels = torch.randn(4, 3, 32, 32)
    exact, model = model(pixel_values=pixels).logits.detach(), model.bfloat16()
    folded = fold_batch_norm(model, lambda: model(pixel_values=pixels.bfloat16()).logits)
    answer = model(pixel_values=pixels.bfloat16()).logits.detach().float()
    assert folded and (answer - exact).abs().max() < 0.05 * exact.abs().max()
