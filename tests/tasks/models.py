"""Small models for the tests, as factories for ``ModelSpec.factory``."""

from __future__ import annotations

import torch
from torch import nn

from tasks.suites.benchmark import Benchmark, mean_of_outputs


def benchmark(module, args, loss=mean_of_outputs, training=True, **kwargs):
    return Benchmark(module.train(training), args, kwargs, loss, len(args[0]), "factory")


def squares(outputs):
    return outputs.float().square().mean()


def mlp(request):
    """Has dropout, and a bias whose gradient is nothing but rounding: the one in front of the normalisation."""
    layers = [nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 4)]
    return benchmark(nn.Sequential(*layers), (torch.randn(request.batch_size or 16, 8),), squares, request.training)


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList()
        for before, after in ((3, 16), (16, 32), (32, 32), (32, 32)):
            self.layers.append(nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU()))
        self.head = nn.Linear(32, 10)

    def forward(self, images):
        for layer in self.layers:
            images = layer(images)
        return self.head(images.mean((2, 3)))


def convnet(request):
    return benchmark(ConvNet(), (torch.randn(request.batch_size or 8, 3, 16, 16),), mean_of_outputs, request.training)


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, inputs):
        return self.layer(inputs + torch.randn_like(inputs))


def noisy(request):
    return benchmark(Noisy(), (torch.randn(16, 8),), squares, request.training)


class Shaken(Noisy):
    """Draws random numbers that move its results by about ``noise``."""

    def __init__(self, noise):
        super().__init__()
        self.noise = noise

    def forward(self, inputs):
        return self.layer(inputs * (1 + self.noise * torch.randn_like(inputs)))


def shaken(request):
    return benchmark(Shaken(3e-5), (torch.randn(16, 8),), squares, request.training)


def jostled(request):
    """What moves the results by little in float32, and by many roundings in bfloat16."""
    return benchmark(Shaken(1e-4), (torch.randn(64, 8),), squares, request.training)


class Augmented(nn.Module):
    """Turns samples round at random, as the augmentation of TorchBench's demucs does."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16))

    def forward(self, inputs):
        signs = 2 * torch.randint(0, 2, (len(inputs), 1), device=inputs.device) - 1
        return self.layers(inputs * signs)


def as_of_many(outputs):
    """The mean over so many elements that their gradients underflow in float16."""
    return outputs.float().square().mean() * 1e-4


def augmented(request):
    return benchmark(Augmented(), (torch.randn(64, 16),), as_of_many, request.training)


class Wavering(nn.Module):
    """Draws random numbers that move its gradient and not its result."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, inputs):
        outputs = self.layer(inputs)
        noise = outputs * torch.randn_like(outputs)
        return outputs + noise - noise.detach()


def wavering(request):
    return benchmark(Wavering(), (torch.randn(16, 8),), squares, request.training)


class Rooted(nn.Module):
    """Its loss is a number, and its gradient is not: the square root has none at zero."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, inputs):
        outputs = self.layer(inputs)
        return outputs + torch.sqrt((outputs * 0).abs())


def rooted(request):
    return benchmark(Rooted(), (torch.randn(16, 8),), squares, request.training)


class Counting(nn.Module):
    """Compiles anew at every call: it depends on a number that changes."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.calls = 0

    def forward(self, inputs):
        self.calls += 1
        return self.layer(inputs) * (1 + self.calls % 1000)


def counting(request):
    return benchmark(Counting(), (torch.randn(16, 8),), squares, request.training)


class Breaking(nn.Module):
    """Breaks the graph inside of a loop, where it cannot be resumed."""

    def __init__(self, *, whole):
        super().__init__()
        self.layer, self.whole = nn.Linear(8, 8), whole

    def forward(self, inputs):
        if self.whole:
            return self.broken(inputs)
        return torch.relu(self.broken(self.layer(inputs) + 1))

    def broken(self, values):
        for _ in range(2):
            torch._dynamo.graph_break()
            values = values + 1
        return values


def breaking(request):
    return benchmark(Breaking(whole=True), (torch.randn(16, 8),), squares, request.training)


def partly_breaking(request):
    return benchmark(Breaking(whole=False), (torch.randn(16, 8),), squares, request.training)


class Failing(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.error = error

    def forward(self, inputs):
        raise self.error


def failing(request):
    return benchmark(Failing(ValueError("no such axis")), (torch.randn(4, 8),))


def exhausting(request):
    return benchmark(Failing(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")), (torch.randn(4, 8),))


def nan_loss(request):
    return benchmark(nn.Linear(8, 8), (torch.full((4, 8), float("nan")),), squares)


class Overflowing(nn.Module):
    """One output element is infinite, the others are ordinary."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, inputs):
        return self.layer(inputs) / torch.arange(8.0)


def overflowing(request):
    return benchmark(Overflowing(), (torch.randn(4, 8),), squares, training=False)


class Fitted(nn.Module):
    """``near`` is almost its target: what is left of it cancels, and is moved by roundings of the weights as ``steady`` is not.

    Computed in true float32 under autocast, too, as a library may choose for one arm and not for the other.
    """

    def __init__(self, inputs, left):
        super().__init__()
        self.near, self.steady = nn.Linear(64, 4), nn.Linear(64, 4)
        self.register_buffer("target", self.near(inputs).detach() - left * torch.randn(len(inputs), 4))

    def forward(self, inputs):
        with torch.autocast("cpu", enabled=False):
            return self.near(inputs) - self.target, self.steady(inputs)


def apart(outputs):
    near, steady = outputs
    return near.square().mean() + 0.01 * steady.square().mean()


def fitted(request):
    inputs = torch.randn(32, 64)
    return benchmark(Fitted(inputs, 2.0**-7), (inputs,), apart, request.training)


class Outputs(nn.Module):
    """Outputs of many kinds."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, inputs):
        hidden = self.layer(inputs)
        return {"hidden": hidden, "best": hidden.argmax(-1), "positive": hidden > 0, "parts": [hidden[0], (hidden[1], None)], "count": 4}


def outputs(request):
    return benchmark(Outputs(), (torch.randn(64, 8),), mean_of_outputs, training=False)


class Clipped(nn.Module):
    """As small as a model with a ReLU can be."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(8))

    def forward(self, inputs):
        return torch.relu(inputs * self.scale) + 1


def clipped(request):
    return benchmark(Clipped(), (torch.randn(16, 8),), squares, request.training)


class Detector(nn.Module):
    """Boxes, scores and labels per image, the best first, as torchvision's detection models give them."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 6)

    def forward(self, images):
        found = []
        for image in images:
            rows = self.layer(image)
            order = rows[:, 4].argsort(descending=True)
            found.append({"boxes": rows[order, :4], "scores": rows[order, 4], "labels": (rows[order, 5] > 0).long()})
        return found


def detector(request):
    return benchmark(Detector(), ([torch.randn(12, 8), torch.randn(9, 8)],), mean_of_outputs, training=False)
