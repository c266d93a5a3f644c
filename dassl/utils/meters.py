"""Running averages of training metrics."""

from __future__ import annotations

from collections import defaultdict


class AverageMeter:
    """The last value of a metric (``val``) and the average of all its values (``avg``).

    With ``ema``, ``avg`` is a moving average, at first 0: 0.9 times the average plus 0.1 times the new value.
    """

    val = avg = sum = 0.0

    def __init__(self, ema: bool = False):
        self.ema = ema
        self.reset()

    def reset(self) -> None:
        """Forget all values."""
        self.val = self.avg = self.sum = self.count = 0

    def update(self, val, n: int = 1) -> None:
        """Add a value (a number or a tensor of one element) that is the mean of ``n`` values."""
        val = val.item() if hasattr(val, "item") else val
        self.val = val
        self.sum += val * n
        self.count += n
        self.avg = self.avg * 0.9 + val * 0.1 if self.ema else self.sum / self.count


class MetricMeter:
    """An ``AverageMeter`` for each metric; as text, joined by ``delimiter``: ``loss 0.1234 (0.2345) acc …``."""

    def __init__(self, delimiter: str = " "):
        self.meters: dict[str, AverageMeter] = defaultdict(AverageMeter)
        self.delimiter = delimiter

    def update(self, input_dict: dict | None) -> None:
        """Add each value in ``input_dict`` to the meter of its name; None adds nothing."""
        for name, value in (input_dict or {}).items():
            self.meters[name].update(value)

    def __str__(self) -> str:
        """Return the name, the last value and, in parentheses, the average of each metric, with four decimals."""
        return self.delimiter.join(f"{name} {meter.val:.4f} ({meter.avg:.4f})" for name, meter in self.meters.items())
